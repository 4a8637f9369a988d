package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"
)

// reservePort takes a free port of 127.0.0.1 (or the one asked for, if not 0) for as long as we live.
//
// The socket is bound with SO_REUSEPORT and never listens. So kube-apiserver, which is told to share its port, can
// bind it, start after start, and gets every connection; while the kernel gives a port that is bound to nobody who
// asks for any free one (inet_csk_find_open_port lets no two sockets share a port that it chose). Two beds, or a bed
// and another test, cannot collide.
func reservePort(wanted int) (int, error) {
	// The kernel binds 127.0.0.1 even where nothing can reach it: in a new namespace, whose loopback is down.
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return 0, fmt.Errorf("the loopback interface: %w", err)
	}
	if lo.Flags&net.FlagUp == 0 {
		return 0, errors.New("the loopback interface is down: bring it up (ip link set lo up)")
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("a socket to reserve a port with: %w", err)
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return 0, fmt.Errorf("SO_REUSEPORT: %w", err)
	}
	loopback := [4]byte{127, 0, 0, 1}
	if err := unix.Bind(socket, &unix.SockaddrInet4{Port: wanted, Addr: loopback}); err != nil {
		where := net.JoinHostPort("127.0.0.1", strconv.Itoa(wanted))
		return 0, fmt.Errorf("binding %s: %w", where, err)
	}
	name, err := unix.Getsockname(socket)
	if err != nil {
		return 0, fmt.Errorf("getsockname: %w", err)
	}
	return name.(*unix.SockaddrInet4).Port, nil
}
