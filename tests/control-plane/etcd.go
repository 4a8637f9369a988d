package main

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// etcd runs a single etcd member with its data in DIR on a free loopback port until it is killed, and prints the
// port's URL once it serves. Nothing is synced to the disk: the data is not worth more than the test.
func etcd(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: etcd DIR")
	}
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	config := embed.NewConfig()
	config.Name = "bed"
	config.Dir = args[0]
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	config.ListenClientUrls = anyPort
	config.ListenPeerUrls = anyPort
	// A lone member is never called by a peer, so what it advertises need not be where it listens.
	config.AdvertiseClientUrls = anyPort
	config.AdvertisePeerUrls = anyPort
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("starting in %s: %w", args[0], err)
	}
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		return errors.New("not ready after 30 s")
	}
	fmt.Printf("http://%s\n", server.Clients[0].Addr())
	return <-server.Err()
}
