package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// node issues what a kubelet needs to be the node NAME of the bed in DIR: NAME.kubeconfig in DIR, and in DIR/pki
// NAME.crt and NAME.key, which are for its own server too. The bed need not run.
func node(args []string) error {
	if len(args) < 2 || strings.HasPrefix(args[0]+args[1], "-") {
		return errors.New("usage: node DIR NAME [--ip ADDRESS]... [--server URL]")
	}
	dir, name := args[0], args[1]
	var ips list
	flags := flag.NewFlagSet("node", flag.ContinueOnError)
	flags.Var(&ips, "ip", "an address of the node, in its certificate")
	server := flags.String("server", "", "URL of the API server as the node sees it, if not as we do")
	if err := flags.Parse(args[2:]); err != nil {
		return err
	}
	who := identity{file: name, user: "system:node:" + name, groups: []string{"system:nodes"}, hosts: []string{name}}
	for _, text := range ips {
		ip := net.ParseIP(text)
		if ip == nil {
			return fmt.Errorf("--ip %q: not an IP address", text)
		}
		who.ips = append(who.ips, ip)
	}
	if *server == "" {
		url, err := os.ReadFile(filepath.Join(dir, "server"))
		if err != nil {
			return fmt.Errorf("no control plane was started in %s: %w", dir, err)
		}
		*server = strings.TrimSpace(string(url))
	}
	pki, err := openAuthority(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	if err := pki.issue(who); err != nil {
		return err
	}
	return pki.kubeconfig(filepath.Join(dir, name+".kubeconfig"), *server, name)
}
