//! One release dies in the middle, and the other one takes over.

use crate::{
    harness::{Which, trace},
    site::{Release, Site},
};

/// So often a call is killed, in each direction.
const KILLS: usize = 4;

/// Spread over all points of a call, and no two runs alike.
fn points(all: usize) -> Vec<usize> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let part = all.div_ceil(KILLS);
    let shift = usize::try_from(now.subsec_micros()).unwrap() % part;
    (0..KILLS).map(|at| (at * part + shift).min(all - 1)).collect()
}

fn steps(site: &Site, release: &Release, verb: &str, id: &str, netns: &str) -> usize {
    let traced = trace(&site.call(release, verb, id, netns), Which::State, None);
    assert_eq!(traced.code, Some(0), "{}", traced.stdout);
    traced.points.len()
}

#[test]
fn an_add_that_one_release_was_killed_in_the_other_undoes_or_begins_anew() {
    let site = Site::new();
    for (first, second) in site.directions() {
        let netns = site.world.netns();
        let all = steps(&site, first, "ADD", "whole", &netns);
        site.call(second, "DEL", "whole", &netns).ok();
        for (turn, before) in points(all).into_iter().enumerate() {
            println!("ADD of {} is killed before change {before} of {all}", first.name);
            let id = format!("{}{turn}", first.name);
            let traced = trace(&site.call(first, "ADD", &id, &netns), Which::State, Some(before));
            // Calls differ by a step or two, so the last point may not be reached.
            assert!(traced.killed || traced.code == Some(0), "{traced:?}");
            let finished = !traced.killed || traced.points.last().is_some_and(|point| point.is_answer());
            if turn % 2 == 1 && !finished {
                site.call(second, "ADD", &id, &netns).ok();
                site.assert_attached(&netns);
                site.call(first, "CHECK", &id, &netns).ok();
            }
            site.call(second, "DEL", &id, &netns).ok();
            site.assert_clean(&[&netns]);
        }
    }
}

#[test]
fn a_del_that_one_release_was_killed_in_the_other_finishes() {
    let site = Site::new();
    for (first, second) in site.directions() {
        let netns = site.world.netns();
        site.call(second, "ADD", "whole", &netns).ok();
        let all = steps(&site, first, "DEL", "whole", &netns);
        for (turn, before) in points(all).into_iter().enumerate() {
            println!("DEL of {} is killed before change {before} of {all}", first.name);
            let id = format!("{}{turn}", first.name);
            site.call(second, "ADD", &id, &netns).ok();
            trace(&site.call(first, "DEL", &id, &netns), Which::State, Some(before));
            if turn % 2 == 0 {
                site.call(second, "DEL", &id, &netns).ok();
            } else {
                site.gc(second, &[]);
            }
            site.assert_clean(&[&netns]);
        }
    }
}
