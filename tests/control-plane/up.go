package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// bed is a running control plane; everything that it writes is in dir.
type bed struct {
	dir, executable string
	controllers     bool
	hosts, apply    list
	port            int
	pki             *authority
	etcdURL         string
	etcd, api       *child
	others          []*child
	client          *http.Client
	// ended is closed when we are to stop: by a signal, or by the end of standard input.
	ended chan struct{}
}

// errEnded says that we were told to stop before all was ready.
var errEnded = errors.New("told to stop before it was ready (standard input has to stay open)")

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// up runs a control plane until its standard input ends or a signal comes. See README.md for what is found in DIR.
func up(args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return errors.New("usage: up DIR [--port N] [--host NAME]... [--apply FILE]... [--controllers]")
	}
	// Our children are to die with us, and the kernel takes the thread that started them for their parent.
	runtime.LockOSThread()
	// A reader that is gone (of "ready") must not end us before we have stopped the others.
	signal.Ignore(syscall.SIGPIPE)
	b := &bed{hosts: list{"localhost", "api.bed.test"}}
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	flags.IntVar(&b.port, "port", 0, "port of the API server on 127.0.0.1 (0: a free one)")
	flags.Var(&b.hosts, "host", "one more name in the API server's certificate")
	flags.Var(&b.apply, "apply", "a manifest to apply before we are ready")
	flags.BoolVar(&b.controllers, "controllers", false, "run kube-controller-manager and kube-scheduler too")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	lock, err := b.claim(args[0])
	if err != nil {
		return err
	}
	defer lock.Close()
	defer b.stop()
	lines := b.listen()
	if err := b.start(); err != nil {
		return err
	}
	fmt.Println("ready")
	return b.serve(lines)
}

// claim makes DIR ours. A second bed in one directory would mix two clusters.
func (b *bed) claim(dir string) (*os.File, error) {
	var err error
	if b.dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if b.executable, err = os.Executable(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(b.dir, "up.pid"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%s was used before, give a directory of its own: %w", b.dir, err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	_, err = fmt.Fprintln(lock, os.Getpid())
	return lock, err
}

// start brings up everything, in order, until the API server answers and has what was to be applied.
func (b *bed) start() error {
	var err error
	if b.port, err = reservePort(b.port); err != nil {
		return err
	}
	if err := b.writeFiles(); err != nil {
		return err
	}
	if err := b.startEtcd(); err != nil {
		return err
	}
	if err := b.startAPI(); err != nil {
		return err
	}
	if err := b.prepare(); err != nil {
		return err
	}
	if !b.controllers {
		return nil
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		started, err := b.spawn(name, nil, b.controllerArguments(name)...)
		if err != nil {
			return err
		}
		b.others = append(b.others, started)
	}
	return nil
}

func (b *bed) server() string { return fmt.Sprintf("https://127.0.0.1:%d", b.port) }

// writeFiles writes keys, certificates, kubeconfigs and the audit policy.
func (b *bed) writeFiles() error {
	pki, err := newAuthority(filepath.Join(b.dir, "pki"))
	if err != nil {
		return fmt.Errorf("the certificate authority: %w", err)
	}
	b.pki = pki
	// 10.0.2.2 is this host as a guest of QEMU's user network sees it; 10.96.0.1 is kubernetes.default.
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 0, 2, 2), net.IPv4(10, 96, 0, 1)}
	hosts := append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc"}, b.hosts...)
	identities := []identity{
		{file: "apiserver", user: "kube-apiserver", hosts: hosts, ips: ips},
		{file: "admin", user: "admin", groups: []string{"system:masters"}},
		{file: "kube-controller-manager", user: "system:kube-controller-manager"},
		{file: "kube-scheduler", user: "system:kube-scheduler"},
	}
	for i, who := range identities {
		if err := pki.issue(who); err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		path := filepath.Join(b.dir, who.file+".kubeconfig")
		if err := pki.kubeconfig(path, b.server(), who.file); err != nil {
			return err
		}
	}
	if err := pki.serviceAccountKey(); err != nil {
		return err
	}
	if err := os.Symlink(b.executable, filepath.Join(b.dir, "kubectl")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "server"), []byte(b.server()+"\n"), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "audit-policy.yaml"), []byte(auditPolicy), 0o644)
}

// startEtcd waits for etcd's URL, which it prints when it serves.
func (b *bed) startEtcd() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	b.etcd, err = b.spawn("etcd", write, filepath.Join(b.dir, "etcd"))
	write.Close()
	defer read.Close()
	if err != nil {
		return err
	}
	url, err := bufio.NewReader(read).ReadString('\n')
	if err != nil {
		<-b.etcd.exited
		return b.etcd.died()
	}
	b.etcdURL = strings.TrimSpace(url)
	return nil
}

// serve waits for the end, and does what is asked for meanwhile.
func (b *bed) serve(lines <-chan string) error {
	for {
		select {
		case line := <-lines:
			answer, err := b.obey(line)
			if err != nil {
				return err
			}
			fmt.Println(answer)
		case <-b.ended:
			return nil
		case <-b.etcd.exited:
			return b.etcd.died()
		case <-b.unexpected():
			return b.api.died()
		}
	}
}

// unexpected is closed when an API server that should run has ended.
func (b *bed) unexpected() <-chan struct{} {
	if b.api == nil {
		return nil
	}
	return b.api.exited
}

// obey does one command of standard input; its answer is one line.
func (b *bed) obey(line string) (string, error) {
	switch command := strings.TrimSpace(line); {
	case command == "start" && b.api == nil:
		return "ready", b.startAPI()
	case command == "stop" && b.api != nil:
		b.api.kill()
		b.api = nil
		return "stopped", nil
	case command == "pause" && b.api != nil:
		return "paused", b.api.cmd.Process.Signal(syscall.SIGSTOP)
	case command == "resume" && b.api != nil:
		return "resumed", b.api.cmd.Process.Signal(syscall.SIGCONT)
	default:
		return "", fmt.Errorf("standard input: %q: want start, stop, pause or resume of the API server", command)
	}
}

func (b *bed) stop() {
	for _, running := range append(b.others, b.api, b.etcd) {
		if running != nil {
			running.kill()
		}
	}
}

// listen hands over the lines of standard input, and closes b.ended at its end or when a signal comes.
func (b *bed) listen() <-chan string {
	b.ended = make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	lines, input := make(chan string), make(chan struct{})
	go func() {
		defer close(input)
		for scanner := bufio.NewScanner(os.Stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	go func() {
		defer close(b.ended)
		select {
		case <-input:
		case <-signals:
		}
	}()
	return lines
}

// down ends the bed that runs in DIR, and succeeds if none does.
func down(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: down DIR")
	}
	path := filepath.Join(args[0], "up.pid")
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer file.Close()
	var pid int
	if _, err := fmt.Fscan(file, &pid); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	// Whoever runs holds the lock; so the number is that process and no later one.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
			return nil
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("ending process %d: %w", pid, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not end", pid)
}
