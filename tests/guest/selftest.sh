#!/bin/bash
# Shows that the guest is what the suites take it for. On the host: tests/guest/boot tests/guest/selftest.sh [PROGRAM...]
# Each PROGRAM, such as a static test binary below target/, is run with --help to show that it starts here.
set -eu

step() { read -r now _ </proc/uptime; echo "[$now s] $*"; }
die() { echo "FAILED: $*"; exit 1; }
# eventually COMMAND...: within 10 s, for links that are just coming up.
eventually() { for _ in {1..10}; do "$@" && return; sleep 0.3; done; return 1; }
reaches() { ip netns exec "$1" ping -q -c 1 -W 1 "$2" >/dev/null; }

step "the script starts; virtual functions:"
# check PF VF...: seven of them, each with its driver and name.
check() {
    local pf=$1 n=0 vf
    shift
    [ $# = 7 ] || die "$pf has $# VFs"
    for vf; do
        [ -d "/sys/bus/pci/devices/$vf/physfn/net/$pf" ] || die "$vf is not of $pf"
        [ -d "/sys/bus/pci/drivers/igbvf/$vf/net/${pf}v$n" ] || die "$vf is not ${pf}v$n"
        n=$((n + 1))
    done
    echo "  $pf ($(cat "/sys/class/net/$pf/address")): $*"
}
# shellcheck disable=SC2086 # lists of words
{ check "$PF_A" $VFS_A; check "$PF_B" $VFS_B; }

step "two VFs of $PF_A in a (10.9.0.1) and b (.2), one of $PF_B in c (.3)"
n=1
for pair in a=${PF_A}v0 b=${PF_A}v1 c=${PF_B}v0; do
    ip netns add "${pair%=*}"
    ip link set "${pair#*=}" netns "${pair%=*}" name net1
    ip -n "${pair%=*}" addr add 10.9.0.$n/24 dev net1
    ip -n "${pair%=*}" link set net1 up
    n=$((n + 1))
done
eventually reaches a 10.9.0.2 || die "ping on one PF"
eventually reaches a 10.9.0.3 || die "ping across the PFs"
step "ping: same PF and across PFs"

ip link set "$PF_A" vf 1 vlan 100
sleep 1
! reaches a 10.9.0.2 || die "VLAN 100 on b alone does not isolate"
reaches a 10.9.0.3 || die "VLAN 100 on b cuts a off from c"
ip link set "$PF_A" vf 0 vlan 100
eventually reaches a 10.9.0.2 || die "VLAN 100 on both sides does not connect"
step "VLAN 100: on one side isolates, on both connects"
ip link set "$PF_A" vf 0 vlan 0
ip link set "$PF_A" vf 1 vlan 0

for kind in reference debian; do
    plugins=$META_CNI_BED_CACHE/plugins/$kind
    [ -d "$plugins" ] || die "no plugins in $plugins: run tests/netns/install first"
    conf='{"cniVersion":"1.0.0","name":"self","type":"bridge","bridge":"self0","isGateway":true,"ipMasq":true,
        "ipam":{"type":"host-local","subnet":"10.8.0.0/24"}}'
    export CNI_CONTAINERID=self CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_PATH=$plugins
    result=$(CNI_COMMAND=ADD "$plugins/bridge" <<<"$conf") || die "$kind bridge: $result"
    eventually reaches a 10.8.0.1 || die "no ping through $kind bridge"
    CNI_COMMAND=DEL "$plugins/bridge" <<<"$conf" || die "$kind bridge DEL"
    step "$kind plugins: bridge gave $(jq -r '.ips[0].address' <<<"$result") behind NAT, ping, and gone"
done

for module in 8021q bonding dummy ipvlan macvlan macvtap veth vfio-pci vrf vxlan tun overlay ifb rdma_rxe; do
    modprobe "$module" || die "modprobe $module"
done
step "modules load"

for program; do
    "$program" --help >/dev/null || die "$program does not start"
    step "$program starts"
done

for name in a b c; do ip netns del $name; done
back() { [ "$(ls -d /sys/class/net/{$PF_A,$PF_B}/device/virtfn*/net/* | wc -l)" = 14 ]; }
eventually back || die "VFs did not come back"
step "all passed"
