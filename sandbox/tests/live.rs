#![allow(clippy::unwrap_used)] // functions beside the tests unwrap too

//! [`Rtnl`] against the running kernel, in namespaces of our own; `ip -j` is the second witness. Needs root.

mod support;

use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use sandbox::{
    Dad, DefaultRoutes, Error, LinkChange, LinkState, Links, MacAddr, Netns, NewAddress, Route, RouteSpec, Rtnl,
    Sysctl, VfSetting, VfVlan, VlanProto, announcing_sysctls, configure, read_back, read_sysctl, write_sysctls,
};
use serde_json::Value;
use support::{addr, ip, ip_in, isolated, name, net, new_netns};

#[test]
fn a_link_is_read_as_ip_shows_it_and_changed_as_asked() {
    isolated(|| async {
        ip("link add v0 type veth peer name v1");
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let v0 = links.by_name("v0").await.unwrap().unwrap();
        let shown = &ip("link show v0")[0];
        assert_eq!(u64::from(v0.index), shown["ifindex"].as_u64().unwrap());
        assert_eq!(v0.mac.unwrap().to_string(), shown["address"].as_str().unwrap());
        assert_eq!(u64::from(v0.mtu), shown["mtu"].as_u64().unwrap());
        assert_eq!(u64::from(v0.txqlen), shown["txqlen"].as_u64().unwrap());
        assert_eq!(
            (v0.kind.as_deref(), v0.up, v0.alias.clone(), v0.parent_dev.clone()),
            (Some("veth"), false, None, None)
        );

        let mac: MacAddr = "02:00:00:00:00:2a".parse().unwrap();
        let changes = [
            LinkChange::Mac(mac),
            LinkChange::Mtu(1400),
            LinkChange::TxQueueLen(77),
            LinkChange::Alias("pod a".to_owned()),
            LinkChange::Promisc(true),
            LinkChange::AllMulti(true),
            LinkChange::Up(true),
        ];
        links.change(v0.index, &changes).await.unwrap();
        links.add_altname(v0.index, "another-name-of-more-than-15-bytes").await.unwrap();
        let shown = &ip("link show v0")[0];
        assert_eq!(shown["address"], "02:00:00:00:00:2a");
        assert_eq!((&shown["mtu"], &shown["txqlen"]), (&Value::from(1400), &Value::from(77)));
        assert_eq!(
            (&shown["ifalias"], &shown["altnames"][0]),
            (&"pod a".into(), &"another-name-of-more-than-15-bytes".into())
        );
        let flags: Vec<&str> = shown["flags"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
        assert!(flags.contains(&"UP") && flags.contains(&"PROMISC") && flags.contains(&"ALLMULTI"), "{flags:?}");

        let again = links.by_name("another-name-of-more-than-15-bytes").await.unwrap().unwrap();
        assert_eq!((again.index, again.mac, again.mtu, again.txqlen), (v0.index, Some(mac), 1400, 77));
        assert_eq!((again.up, again.promisc, again.allmulti), (true, true, true));
        assert_eq!((again.alias.as_deref(), again.altnames.len()), (Some("pod a"), 1));

        links.del_altname(v0.index, "another-name-of-more-than-15-bytes").await.unwrap();
        links.change(v0.index, &[LinkChange::Alias(String::new()), LinkChange::Up(false)]).await.unwrap();
        let last = links.by_index(v0.index).await.unwrap().unwrap();
        assert_eq!((last.alias, last.up, last.altnames.len()), (None, false, 0));
        assert!(last.promisc, "only what was named has changed");
        assert_eq!(links.by_name("nothing").await.unwrap(), None);
        assert_eq!(links.by_index(4711).await.unwrap(), None);
        assert_eq!(
            links.list().await.unwrap().iter().map(|l| l.name.as_str()).filter(|n| n.starts_with('v')).count(),
            2
        );
    });
}

#[test]
fn errors_keep_errno_object_and_the_kernels_own_text() {
    isolated(|| async {
        ip("link add v0 type veth peer name v1");
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let v0 = links.by_name("v0").await.unwrap().unwrap();
        let error = links.change(v0.index, &[LinkChange::Mtu(1_000_000)]).await.unwrap_err();
        let Error::Kernel { step, object, source, detail } = &error else { panic!("{error:?}") };
        assert_eq!((step.as_str(), object.as_str()), ("set mtu", format!("link {}", v0.index).as_str()));
        assert_eq!(source.raw_os_error(), Some(Errno::EINVAL as i32));
        assert_eq!(detail.as_deref(), Some("mtu greater than device maximum"));
        assert_eq!(links.change(4711, &[LinkChange::Up(true)]).await.unwrap_err().errno(), Some(Errno::ENODEV as i32));
    });
}

/// A veth has no VFs: a well-formed request is refused as unsupported, a malformed one as out of range. This tells
/// whether the bytes of each setting are right without any SR-IOV hardware.
#[test]
fn each_vf_setting_is_well_formed_on_the_wire() {
    isolated(|| async {
        ip("link add v0 type veth peer name v1");
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let v0 = links.by_name("v0").await.unwrap().unwrap();
        let settings = [
            VfSetting::Mac(MacAddr([2, 0, 0, 0, 0, 1])),
            VfSetting::Vlan(VfVlan { id: 100, qos: 3, proto: VlanProto::Dot1Ad }),
            VfSetting::Rate { min: 1, max: 100 },
            VfSetting::SpoofChk(true),
            VfSetting::LinkState(LinkState::Enable),
            VfSetting::Trust(true),
        ];
        for setting in settings {
            let error = links.set_vf(v0.index, 3, &[setting]).await.unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP as i32), "{error}");
        }
        let error = links.set_vf(v0.index, 3, &settings).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EOPNOTSUPP as i32), "{error}");
        let report = links.pf_report(v0.index).await.unwrap();
        assert_eq!((report.link.name.as_str(), report.vfs.len()), ("v0", 0));
        assert_eq!(links.pf_report(4711).await.unwrap_err().errno(), Some(Errno::ENODEV as i32));
    });
}

#[test]
fn a_link_moves_and_is_renamed_in_one_message() {
    isolated(|| async {
        ip("link add v0 type veth peer name v1");
        let (host_ns, pod_ns) = (Netns::current().unwrap(), new_netns());
        assert!(!host_ns.same_as(&pod_ns));
        let (host, pod) = (Rtnl::open(&host_ns).unwrap(), Rtnl::open(&pod_ns).unwrap());
        let v0 = host.by_name("v0").await.unwrap().unwrap();
        host.subscribe().await.unwrap();
        let changes = [LinkChange::Mtu(1400), LinkChange::Alias("default/p".into())];
        host.move_with(v0.index, &pod, &name("net1"), &changes).await.unwrap();
        assert!(host.link_event(Duration::from_secs(5)).await.unwrap(), "the host saw it leave");
        assert_eq!(host.by_name("v0").await.unwrap(), None);
        let net1 = pod.by_name("net1").await.unwrap().unwrap();
        assert_eq!((net1.mac, net1.mtu, net1.alias.as_deref(), net1.up), (v0.mac, 1400, Some("default/p"), false));
        pod.change_named(&name("net1"), &[LinkChange::Up(true)]).await.unwrap();
        let shown = ip_in(&pod_ns, "link show net1");
        assert_eq!(shown[0]["address"], v0.mac.unwrap().to_string());
        assert_eq!((&shown[0]["flags"][0], &shown[0]["ifname"]), (&"NO-CARRIER".into(), &"net1".into()));
        let error = pod.change_named(&name("net9"), &[LinkChange::Up(true)]).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV as i32));
        pod.move_to(net1.index, &host, &name("v0")).await.unwrap();
        assert_eq!(host.by_name("v0").await.unwrap().unwrap().mac, v0.mac);
        // The move that fails half way: it went over, but the name was taken.
        ip_in(&pod_ns, "link add net1 type veth peer name other");
        let v0 = host.by_name("v0").await.unwrap().unwrap();
        let error = host.move_to(v0.index, &pod, &name("net1")).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST as i32));
        assert_eq!(host.by_name("v0").await.unwrap(), None);
        assert_eq!(pod.by_name("v0").await.unwrap().unwrap().mac, v0.mac);
        // Or at the MTU, which comes before the name.
        pod.move_to(v0.index, &host, &name("v0")).await.unwrap();
        let too_much = [LinkChange::Mtu(1_000_000), LinkChange::Alias("other".into())];
        let error = host.move_with(v0.index, &pod, &name("net2"), &too_much).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL as i32));
        let left = pod.by_name("v0").await.unwrap().unwrap();
        assert_eq!((left.mtu, left.alias.as_deref()), (1400, Some("default/p")));
    });
}

#[test]
fn an_interface_is_configured_and_reads_back_as_ip_shows_it() {
    isolated(|| async {
        ip("link add net1 type veth peer name v1");
        ip("link set v1 up");
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let link = links.by_name("net1").await.unwrap().unwrap();
        let addresses = [
            NewAddress { net: net("10.1.2.3/24"), dad: Dad::AsConfigured },
            NewAddress { net: net("fd01::3/64"), dad: Dad::Skip },
        ];
        let routes = [
            RouteSpec::new(net("10.20.0.0/16"), None),
            RouteSpec::new(net("10.21.0.0/16"), Some(addr("10.1.2.9"))),
            RouteSpec { scope: Some(253), ..RouteSpec::new(net("10.22.0.0/16"), None) },
            RouteSpec { table: Some(1000), priority: Some(7), ..RouteSpec::new(net("0.0.0.0/0"), None) },
            RouteSpec { mtu: Some(1300), advmss: Some(1200), ..RouteSpec::new(net("fd20::/64"), None) },
            RouteSpec { onlink: true, ..RouteSpec::new(net("10.23.0.0/16"), Some(addr("192.0.2.1"))) },
        ];
        let gateways = [addr("10.1.2.1"), addr("fd01::1")];
        configure(&links, &link, &addresses, &gateways, &routes).await.unwrap();

        let found = read_back(&links, &name("net1")).await.unwrap();
        assert!(found.link.up);
        let v4 = found.addresses.iter().find(|a| a.net == net("10.1.2.3/24")).unwrap();
        assert_eq!((v4.scope, v4.tentative), (0, false));
        let v6 = found.addresses.iter().find(|a| a.net == net("fd01::3/64")).unwrap();
        let peer = links.by_name("v1").await.unwrap().unwrap();
        links.add_address(peer.index, &NewAddress { net: net("10.9.9.9/32"), dad: Dad::AsConfigured }).await.unwrap();
        let all = links.all_addresses().await.unwrap();
        let of = |wanted: &str| {
            all.iter().filter(|(_, a)| a.net == net(wanted)).map(|(index, _)| *index).collect::<Vec<_>>()
        };
        assert_eq!((of("10.1.2.3/24"), of("fd01::3/64")), (vec![link.index], vec![link.index]));
        assert_eq!(of("10.9.9.9/32"), [peer.index], "those of all links, each with its own");
        assert_eq!((v6.tentative, v6.dad_failed), (false, false), "nodad: usable at once");
        let route = |dst: &str| found.routes.iter().find(|r| r.dst == net(dst)).unwrap_or_else(|| panic!("{dst}"));
        assert_eq!(route("10.20.0.0/16").gateway, Some(addr("10.1.2.1")));
        assert_eq!(route("10.21.0.0/16").gateway, Some(addr("10.1.2.9")));
        assert_eq!((route("10.22.0.0/16").gateway, route("10.22.0.0/16").scope), (None, 253));
        let other_table = route("0.0.0.0/0");
        assert_eq!((other_table.table, other_table.priority), (1000, Some(7)));
        let v6route = route("fd20::/64");
        assert_eq!((v6route.gateway, v6route.mtu, v6route.advmss), (Some(addr("fd01::1")), Some(1300), Some(1200)));
        assert!(route("10.23.0.0/16").onlink);
        let shown = ip("-4 route show dev net1");
        assert_eq!(shown.as_array().unwrap().iter().filter(|r| r["gateway"] == "10.1.2.1").count(), 1, "{shown}");
        let shown = ip("-4 addr show dev net1");
        assert_eq!(shown[0]["addr_info"][0]["broadcast"], "10.1.2.255");

        links.del_route(other_table).await.unwrap();
        links.del_address(link.index, v4).await.unwrap();
        let found = read_back(&links, &name("net1")).await.unwrap();
        assert!(found.routes.iter().all(|r| r.table != 1000));
        assert!(found.addresses.iter().all(|a| a.net != net("10.1.2.3/24")));
        let Err(Error::NoSuchLink { name }) = read_back(&links, &name("net9")).await else { panic!("net9 was found") };
        assert_eq!(name, "net9");
    });
}

#[test]
fn the_default_route_is_changed_and_can_be_put_back() {
    isolated(|| async {
        for (link, v4, v6) in [("eth0", "10.0.0.2/24", "fd00::2/64"), ("net1", "10.1.0.2/24", "fd01::2/64")] {
            ip(&format!("link add {link} type veth peer name p-{link}"));
            ip(&format!("link set p-{link} up"));
            ip(&format!("link set {link} up"));
            ip(&format!("addr add {v4} dev {link}"));
            ip(&format!("addr add {v6} dev {link} nodad"));
        }
        ip("route add default via 10.0.0.1");
        ip("route add default via 10.0.0.254 metric 50 mtu 1400");
        ip("-6 route add default via fd00::1");
        ip("route add default via 10.0.0.1 table 100");
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let before = links.routes().await.unwrap();
        let net1 = links.by_name("net1").await.unwrap().unwrap().index;
        let plan = async |gateways: &[&str]| {
            let gateways: Vec<_> = gateways.iter().map(|text| addr(text)).collect();
            DefaultRoutes::plan(&links, net1, &gateways).await.unwrap()
        };
        let change = plan(&["10.1.0.1"]).await;
        assert_eq!((change.removed.len(), change.added.len()), (2, 1));
        let sorted = |mut routes: Vec<Route>| {
            routes.sort_by_key(|r| format!("{r:?}"));
            routes
        };
        assert_eq!(sorted(links.routes().await.unwrap()), sorted(before.clone()), "planned is not done");
        let difference = change.differences(&links, net1).await.unwrap().remove(0).to_string();
        let found = "via 10.0.0.1 on eth0, via 10.0.0.254 on eth0";
        assert_eq!(difference, format!("IPv4 default route: wanted via 10.1.0.1 on net1, found {found}"));
        change.apply(&links, net1).await.unwrap();
        let shown = ip("-4 route show default");
        assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
        assert_eq!((&shown[0]["gateway"], &shown[0]["dev"]), (&"10.1.0.1".into(), &"net1".into()));
        assert_eq!(ip("-6 route show default")[0]["dev"], "eth0", "the other family keeps its own");
        assert_eq!(ip("-4 route show table 100")[0]["dev"], "eth0", "another table is none of ours");
        // Asking again changes nothing.
        let again = plan(&["10.1.0.1"]).await;
        assert_eq!((&again.removed, &again.added), (&vec![], &vec![]));
        again.apply(&links, net1).await.unwrap();
        change.undo(&links).await.unwrap();
        assert_eq!(sorted(links.routes().await.unwrap()), sorted(before.clone()));
        // Killed in the middle of it: what was done is taken back, and what was not is no error.
        links.del_route(&change.removed[1]).await.unwrap();
        change.undo(&links).await.unwrap();
        assert_eq!(sorted(links.routes().await.unwrap()), sorted(before.clone()));
        // A router that cannot be reached: refused, and nothing has changed.
        let error = plan(&["203.0.113.1"]).await.apply(&links, net1).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENETUNREACH as i32), "{error}");
        assert_eq!(sorted(links.routes().await.unwrap()), sorted(before.clone()));
        // Several ways of one route go and come back together.
        ip("-6 route append default via fd00::9 dev eth0");
        let before = links.routes().await.unwrap();
        let both = plan(&["10.1.0.1", "fd01::1"]).await;
        assert_eq!((both.removed.len(), both.added.len()), (3, 2), "{both:?}");
        both.apply(&links, net1).await.unwrap();
        let shown = ip("-6 route show default");
        assert_eq!((shown.as_array().unwrap().len(), &shown[0]["dev"]), (1, &"net1".into()), "{shown}");
        both.undo(&links).await.unwrap();
        assert_eq!(sorted(links.routes().await.unwrap()), sorted(before));
        // One that somebody adds beside it later is a difference.
        both.apply(&links, net1).await.unwrap();
        ip("route add default via 10.0.0.1 metric 9");
        ip("-6 route del default");
        let told: Vec<String> = both.differences(&links, net1).await.unwrap().iter().map(ToString::to_string).collect();
        let expected = [
            "IPv4 default route: wanted via 10.1.0.1 on net1, found via 10.1.0.1 on net1, via 10.0.0.1 on eth0",
            "IPv6 default route: wanted via fd01::1 on net1, found none",
        ];
        assert_eq!(told, expected);
    });
}

/// As the CNI plugins add theirs: where another interface leads already, both stand side by side.
#[test]
fn a_route_stands_beside_one_of_another_interface() {
    isolated(|| async {
        for link in ["eth0", "net1"] {
            ip(&format!("link add {link} type veth peer name p-{link}"));
            ip(&format!("link set p-{link} up"));
        }
        let links = Rtnl::open(&Netns::current().unwrap()).unwrap();
        let routes = [RouteSpec::new(net("0.0.0.0/0"), None), RouteSpec::new(net("10.9.0.0/16"), None)];
        for (link, v4, gateway) in [("eth0", "10.0.0.2/24", "10.0.0.1"), ("net1", "10.1.0.2/24", "10.1.0.1")] {
            let address = NewAddress { net: net(v4), dad: Dad::AsConfigured };
            let link = links.by_name(link).await.unwrap().unwrap();
            // The second of the same is as good as added.
            let twice = [&routes[..], &routes[..1]].concat();
            configure(&links, &link, &[address], &[addr(gateway)], &twice).await.unwrap();
        }
        for dst in ["default", "10.9.0.0/16"] {
            let shown = ip(&format!("-4 route show {dst}"));
            let devices: Vec<_> = shown.as_array().unwrap().iter().map(|route| &route["dev"]).collect();
            assert_eq!(devices, ["net1", "eth0"], "the later one is preferred");
        }
    });
}

#[test]
fn sysctls_are_those_of_the_namespace_and_not_of_the_caller() {
    isolated(|| async {
        let pod_ns = new_netns();
        ip_in(&pod_ns, "link add net1 type veth peer name v1");
        write_sysctls(&pod_ns, &announcing_sysctls(&name("net1"))).unwrap();
        assert_eq!(read_sysctl(&pod_ns, "ipv4/conf/net1/arp_notify").unwrap(), "1");
        assert_eq!(read_sysctl(&pod_ns, "ipv6/conf/net1/ndisc_notify").unwrap(), "1");
        assert_eq!(read_sysctl(&pod_ns, "ipv4/conf/default/arp_notify").unwrap(), "0");
        let here = Netns::current().unwrap();
        let error = read_sysctl(&here, "ipv4/conf/net1/arp_notify").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT as i32), "net1 is in the pod only");
        let missing = |optional| Sysctl { key: "ipv4/conf/none/arp_notify".into(), value: "1".into(), optional };
        write_sysctls(&pod_ns, &[missing(true)]).unwrap();
        assert_eq!(write_sysctls(&pod_ns, &[missing(false)]).unwrap_err().errno(), Some(Errno::ENOENT as i32));
        for bad in ["", "../kernel/panic", "/etc/passwd", "ipv4/../../kernel/panic"] {
            assert!(matches!(read_sysctl(&pod_ns, bad), Err(Error::Sysctl { key, .. }) if key == bad));
        }
    });
}

#[test]
fn a_namespace_path_is_told_from_what_only_looks_like_one() {
    isolated(|| async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(Netns::open(&file), Err(Error::NotANamespace { path, .. }) if path == file));
        let gone = dir.path().join("gone");
        assert!(matches!(Netns::open(&gone), Err(Error::NamespaceGone { path, .. }) if path == gone));
        assert!(matches!(Netns::open("/proc/0/ns/net"), Err(Error::NamespaceGone { .. })));
        // A bind mount, as a container runtime makes one.
        let mounted = dir.path().join("mounted");
        std::fs::write(&mounted, "").unwrap();
        mount(Some("/proc/thread-self/ns/net"), &mounted, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let netns = Netns::open(&mounted).unwrap();
        assert!(netns.same_as(&Netns::current().unwrap()));
        assert!(netns.id().is_alive().unwrap());
        let json = serde_json::to_string(netns.id()).unwrap();
        assert_eq!(&serde_json::from_str::<sandbox::NetnsId>(&json).unwrap(), netns.id());
        let id = netns.id().clone();
        drop(netns); // an open descriptor keeps the mount busy
        nix::mount::umount(&mounted).unwrap();
        assert!(!id.is_alive().unwrap(), "a plain file again");
        std::fs::remove_file(&mounted).unwrap();
        assert!(!id.is_alive().unwrap());
    });
}

/// A namespace lives as long as a socket in it is open, and so would keep a VF from coming back.
#[test]
fn a_dropped_socket_lets_its_namespace_die() {
    isolated(|| async {
        let host = Rtnl::open(&Netns::current().unwrap()).unwrap();
        ip("link add v0 type veth peer name v1");
        let v0 = host.by_name("v0").await.unwrap().unwrap();
        {
            let pod = Rtnl::open(&new_netns()).unwrap();
            host.move_to(v0.index, &pod, &name("net1")).await.unwrap();
            let net1 = pod.by_name("net1").await.unwrap().unwrap();
            pod.pf_report(net1.index).await.unwrap();
            pod.subscribe().await.unwrap();
        }
        // One end of a veth dies with its namespace, and takes the other along.
        host.subscribe().await.unwrap();
        for _ in 0..20 {
            if host.by_name("v1").await.unwrap().is_none() {
                return;
            }
            host.link_event(Duration::from_millis(250)).await.unwrap();
        }
        panic!("the namespace is still alive after five seconds");
    });
}
