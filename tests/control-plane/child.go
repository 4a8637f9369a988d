package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// child is one of our own programs, running. exited is closed when it is no more; err then says how it ended.
type child struct {
	name   string
	log    string
	cmd    *exec.Cmd
	exited chan struct{}
	err    error
}

// spawn starts the program of this file that is called name, with its output appended to DIR/NAME.log. It is killed
// when we end in whatever way: the caller has to be on the main thread, since that is what the kernel watches.
func (b *bed) spawn(name string, stdout *os.File, args ...string) (*child, error) {
	path := filepath.Join(b.dir, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(b.executable, append([]string{name}, args...)...)
	// kubectl keeps what it discovers below HOME, where another bed's answers would be found.
	cmd.Env = append(os.Environ(), "HOME="+b.dir)
	cmd.Stderr = log
	cmd.Stdout = log
	if stdout != nil {
		cmd.Stdout = stdout
	}
	// A group of its own: Ctrl-C is for us alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	started := &child{name: name, log: path, cmd: cmd, exited: make(chan struct{})}
	go func() {
		started.err = cmd.Wait()
		close(started.exited)
	}()
	pid := []byte(fmt.Sprintln(cmd.Process.Pid))
	if err := os.WriteFile(filepath.Join(b.dir, name+".pid"), pid, 0o644); err != nil {
		return nil, err
	}
	return started, nil
}

// kill ends the child at once and waits until it is gone. There is nothing in a bed that wants a graceful end.
func (c *child) kill() {
	// The only error is that it has ended already.
	_ = c.cmd.Process.Kill()
	<-c.exited
}

// died is the error for a child that ended unasked, with the end of its log.
func (c *child) died() error {
	text, err := os.ReadFile(c.log)
	if err != nil {
		return fmt.Errorf("%s ended: %v; its log: %w", c.name, c.err, err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return fmt.Errorf("%s ended: %v; the end of %s:\n%s", c.name, c.err, c.log, strings.Join(lines, "\n"))
}
