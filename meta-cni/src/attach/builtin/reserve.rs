//! Reserving addresses: for all attachments of a call before the first one is made, so that an exhausted pool is known
//! while nothing is touched; and for all of them that draw on one pool at once.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use ipam::{Owner, Pool, Prior, Request, Reservation, reserve_all};
use sandbox::Netns;

use super::{Addresses, LOCK_PATIENCE, addresses::BuiltinIpam};
use crate::{
    attach::{
        Engine,
        add::{Begun, Made},
        record::{Call, PoolAddresses, Record},
    },
    cni::Error,
    network::Attachment,
    pod::PodName,
};

/// What an attachment takes from a pool.
struct Share {
    /// Its place among the attachments.
    position: usize,
    title: String,
    primary: bool,
    owner: Owner,
    pool: Box<Pool>,
    requested: Vec<IpAddr>,
}

impl Engine {
    /// Reserves the addresses of all attachments that take theirs from a pool. The records of these are begun, and name
    /// the addresses before they are taken.
    pub(in crate::attach) async fn reserve_addresses(
        &self,
        call: &Call,
        attachments: &[Attachment],
        (pod, netns): (Option<&PodName>, &Netns),
        begun: &mut Begun,
    ) -> Result<(), Error> {
        let mut pools: BTreeMap<PathBuf, Vec<Share>> = BTreeMap::new();
        for (position, attachment) in attachments.iter().enumerate() {
            let share = self.share(call, position, attachment).map_err(|error| attachment.failed(error))?;
            let Some(share) = share else { continue };
            begun.insert(position, Made::new(self.begin(call, position, attachment, pod, netns)?));
            pools.entry(share.pool.directory.clone()).or_default().push(share);
        }
        for (directory, shares) in &pools {
            let titles: Vec<&str> = shares.iter().map(|share| share.title.as_str()).collect();
            let of_network = |error: Error| {
                let titles = titles.join(", ");
                let error = error.of_network(&titles);
                if shares.iter().all(|share| share.primary) { error } else { error.refusing(titles) }
            };
            match self.reserve(shares, begun) {
                Err(Error::Address(error)) if error.lacks_address() => {
                    if !self.reclaim_for(&[directory.clone()].into()).await {
                        return Err(of_network(Error::Address(error)));
                    }
                    tracing::warn!(pool = %directory.display(), "addresses that an earlier boot left are free again");
                    self.reserve(shares, begun).map_err(of_network)?;
                }
                reserved => reserved.map_err(of_network)?,
            }
        }
        Ok(())
    }

    /// What an attachment takes from a pool, if it is made in-process and has a pool.
    fn share(&self, call: &Call, position: usize, attachment: &Attachment) -> Result<Option<Share>, Error> {
        if !attachment.is_builtin(&self.settings) {
            return Ok(None);
        }
        let list = attachment.additions.apply(attachment.list.clone())?;
        let ipam = self.ipam(&list, &attachment.runtime_config, &attachment.args, &attachment.network)?;
        let BuiltinIpam::Pool { pool, requested } = ipam else { return Ok(None) };
        let owner = Owner::new(&call.container, &attachment.interface)?;
        let (title, primary) = (attachment.title(), attachment.primary);
        Ok(Some(Share { position, title, primary, owner, pool, requested }))
    }

    /// Reserves what several attachments take from one pool, all or none, under one hold of its lock.
    fn reserve(&self, shares: &[Share], begun: &mut Begun) -> Result<(), Error> {
        // What an earlier attempt of this call reserved was given back before: the records say so.
        let request = |share| {
            let Share { owner, requested, .. }: &Share = share;
            Request { owner, requested, prior: Prior::NoneKnown, lock_wait: LOCK_PATIENCE }
        };
        let requests: Vec<(&Pool, Request<'_>)> = shares.iter().map(|share| (&*share.pool, request(share))).collect();
        let reserved = reserve_all(&requests, |chosen| {
            for (share, chosen) in shares.iter().zip(chosen) {
                let Some(made) = begun.get_mut(&share.position) else { continue };
                self.write_down(&mut made.record, &share.pool, chosen)?;
            }
            Ok::<(), Error>(())
        })?;
        for (share, reserved) in shares.iter().zip(reserved) {
            if let Some(made) = begun.get_mut(&share.position) {
                made.reserved = Addresses::of_pool(&share.pool, &reserved)?;
            }
        }
        Ok(())
    }

    /// Writes into an attachment's record what is about to be reserved for it.
    pub(super) fn write_down(&self, record: &mut Record, pool: &Pool, chosen: &[Reservation]) -> Result<(), Error> {
        record.addresses = Some(PoolAddresses {
            directory: pool.directory.clone(),
            addresses: chosen.iter().map(|reservation| reservation.address.addr()).collect(),
            cool_down: pool.cool_down.as_secs(),
        });
        self.records.write(record, false)
    }
}
