//! What a caller asks a pool for.

use std::net::IpAddr;
use std::time::Duration;

use crate::address::{self, Cidr};
use crate::{Error, Owner};

/// What the caller knows of earlier reservations of the same owner in this pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prior {
    /// Nothing: every lease file of the pool is read to find out, as host-local does. Costs one open a lease.
    Unknown,
    /// The caller's own records show that the owner has none here. Nothing is read, and the cost of a reservation
    /// does not grow with the pool. If the records are wrong the owner gets a second address and keeps the first.
    NoneKnown,
    /// Nothing, but the index beside the pool is asked in place of every file. It is made when there is none.
    Indexed,
}

/// A request for one address of every range set.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who it is for.
    pub owner: &'a Owner,
    /// Addresses wanted by name; each goes to the range set that contains it.
    pub requested: &'a [IpAddr],
    /// What is known of earlier reservations.
    pub prior: Prior,
    /// How long the pool's lock is waited for.
    pub lock_wait: Duration,
}

/// Puts together the addresses asked for in the three places host-local looks at, in its order; they add up. Each may
/// have a prefix length, which does not count.
///
/// `environment` is `IP` of `CNI_ARGS` (empty is none), `args` is `args.cni.ips`, `runtime` is `runtimeConfig.ips`.
///
/// # Errors
/// [`Error::BadRequest`] with the place.
pub fn requested_addresses(
    environment: Option<&str>,
    args: &[String],
    runtime: &[String],
) -> Result<Vec<IpAddr>, Error> {
    let environment = environment.filter(|text| !text.is_empty()).map(|text| (Place::Environment, text));
    let args = args.iter().map(|text| (Place::Args, text.as_str()));
    let runtime = runtime.iter().map(|text| (Place::Runtime, text.as_str()));
    let mut addresses = Vec::new();
    for (place, text) in environment.into_iter().chain(args).chain(runtime) {
        let address = match text.contains('/') {
            true => Cidr::parse(text).map(|cidr| cidr.address.to_canonical()),
            false => address::parse(text),
        };
        let address = address.ok_or_else(|| Error::BadRequest { place: place.said_of(text), text: text.to_owned() })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Where an address is asked for.
#[derive(Clone, Copy)]
enum Place {
    Environment,
    Args,
    Runtime,
}

impl Place {
    /// What stands before an error about a text found there. That of `CNI_ARGS` is host-local's own.
    fn said_of(self, text: &str) -> String {
        match self {
            Place::Environment => format!("ARGS: error parsing value of pair \"IP={text}\""),
            Place::Args => "args.cni.ips".to_owned(),
            Place::Runtime => "runtimeConfig.ips".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_places_add_up_in_order_and_prefixes_are_dropped() {
        let (args, runtime) = (["10.0.0.3/24".to_owned()], ["fd00::1".to_owned(), "::ffff:10.0.0.3".to_owned()]);
        let found = requested_addresses(Some("10.0.0.9"), &args, &runtime).unwrap();
        assert_eq!(found.iter().map(IpAddr::to_string).collect::<Vec<_>>(), ["10.0.0.9", "10.0.0.3", "fd00::1"]);
        assert_eq!(requested_addresses(Some(""), &[], &[]).unwrap(), Vec::<IpAddr>::new());
    }

    #[test]
    fn what_is_no_address_is_refused_by_its_place() {
        for text in ["10.0.0.300", "", "10.0.0.3/40"] {
            let list = [text.to_owned()];
            let error = requested_addresses(None, &list, &[]).unwrap_err();
            assert_eq!(error.to_string(), format!("args.cni.ips: invalid IP address {text}"));
            let error = requested_addresses(None, &[], &list).unwrap_err();
            assert!(matches!(&error, Error::BadRequest { place, .. } if place == "runtimeConfig.ips"), "{error}");
        }
        let error = requested_addresses(Some("ten"), &[], &[]).unwrap_err();
        assert_eq!(error.to_string(), "ARGS: error parsing value of pair \"IP=ten\": invalid IP address ten");
    }
}
