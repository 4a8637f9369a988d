//! Names to addresses without glibc: its resolver loads modules at run time, which a static program cannot rely on.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// The resolver of the connection to the API server: /etc/hosts first, then the servers of /etc/resolv.conf.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let name = name.as_str();
            let hosts = std::fs::read_to_string(Path::new("/etc/hosts")).unwrap_or_default();
            let mut addresses = of_hosts(&hosts, name);
            if addresses.is_empty() {
                // Built only now: most kubeconfigs name an address or a host of /etc/hosts.
                let unknown = |problem: &dyn std::fmt::Display| {
                    std::io::Error::other(format!(
                        "the name {name} has no address in /etc/hosts, nor by /etc/resolv.conf ({problem})"
                    ))
                };
                let resolver = TokioResolver::builder_tokio().map_err(|problem| unknown(&problem))?;
                let resolver = resolver.build().map_err(|problem| unknown(&problem))?;
                let found = resolver.lookup_ip(name).await.map_err(|problem| unknown(&problem))?;
                addresses = found.iter().collect();
            }
            Ok(addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

/// The addresses of a name in the text of a hosts file, in its order.
fn of_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_line_by_line() {
        let text = "127.0.0.1 localhost # api\n10.0.0.1\tapi.example API2\nfd00::1 api.example\nbroken api.example\n";
        let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(of_hosts(text, "api.example"), expected);
        assert_eq!(of_hosts(text, "api2").len(), 1);
        assert!(of_hosts(text, "api").is_empty());
    }
}
