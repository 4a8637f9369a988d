//! Every step made to fail, on every driver, with every errno that a kernel or a driver may answer.

use nix::errno::Errno;
use sandbox::fake::{Driver, Fault};
use sriov::Error;

use crate::node::{DRIVERS, decorate, much, node_on, run, tree, with_altnames_sorted};

const ERRNOS: [Errno; 10] = [
    Errno::EBUSY,
    Errno::EAGAIN,
    Errno::EPERM,
    Errno::EINVAL,
    Errno::ENODEV,
    Errno::ENOMEM,
    Errno::EOPNOTSUPP,
    Errno::EADDRNOTAVAIL,
    Errno::EEXIST,
    Errno::EIO,
];

/// Runs a case with its first message failing, then its second, and so on until it has no more messages: the case tells.
/// Gives the number of points.
fn at_each_step(driver: Driver, mut case: impl FnMut(Fault, &str) -> bool) -> u32 {
    let mut points = 0;
    for errno in ERRNOS {
        for takes_effect in [false, true] {
            for step in 1.. {
                let at = format!("{driver:?}: {errno}, taking effect: {takes_effect}, at message {step}");
                if case(Fault { step, errno, takes_effect }, &at) {
                    break;
                }
                points += 1;
            }
        }
    }
    points
}

/// Each message of an ADD in turn gets each errno, with and without taking effect all the same; whatever comes of it,
/// restoring leads back to the beginning.
#[test]
fn after_a_failure_at_any_step_the_start_is_reached_again() {
    for driver in DRIVERS {
        let tree = tree(driver);
        let points = at_each_step(driver, |fault, at| {
            run(async {
                let node = node_on(driver, &tree);
                decorate(&node.kernel);
                let before = node.kernel.snapshot();
                let wanted = much();
                let original = node.find(&wanted).await.unwrap();
                node.kernel.fail(fault);
                let result = node.attach(&original, &wanted).await;
                let done = (node.kernel.messages().len() as u32) < fault.step;
                assert!(!done || result.is_ok(), "{at}: nothing failed and yet {result:?}");
                node.kernel.heal();
                node.restore(&original).await.unwrap_or_else(|e| panic!("{at}: {e}"));
                assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{at}");
                done
            })
        });
        println!("{driver:?}: an ADD failed at {points} points");
        assert!(points > 200, "{driver:?}: {points}");
    }
}

/// The same for the way back: a restore that fails says what is left, and the next one finishes it.
#[test]
fn a_restore_that_fails_at_any_step_is_finished_by_the_next() {
    for driver in DRIVERS {
        let tree = tree(driver);
        let mut failed = 0;
        let points = at_each_step(driver, |fault, at| {
            run(async {
                let node = node_on(driver, &tree);
                decorate(&node.kernel);
                let before = node.kernel.snapshot();
                let wanted = much();
                let original = node.find(&wanted).await.unwrap();
                node.attach(&original, &wanted).await.unwrap();
                node.kernel.fail(fault);
                let first = node.restore(&original).await;
                let done = (node.kernel.messages().len() as u32) < fault.step;
                node.kernel.heal();
                match first {
                    // Success is a promise.
                    Ok(()) => {}
                    Err(Error::NotRestored { pci, ref problems }) => {
                        assert!(!done && !problems.is_empty(), "{at}");
                        assert_eq!(pci, original.pci);
                        failed += 1;
                        node.restore(&original).await.unwrap_or_else(|e| panic!("{at}: {e} after {first:?}"));
                    }
                    Err(other) => panic!("{at}: {other}"),
                }
                assert_eq!(node.kernel.snapshot(), with_altnames_sorted(&before, &node.kernel), "{at}");
                done
            })
        });
        println!("{driver:?}: a DEL was disturbed at {points} points, failed and was finished by a retry at {failed}");
        assert!(points > 200 && failed > 50, "{driver:?}: {points}, {failed}");
    }
}
