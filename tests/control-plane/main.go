// control-plane is the programs of a Kubernetes cluster in one file: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, kubelet and kubectl, as released, and the few commands that start and stop them for a test.
// It is the program it is called as (argv[0]), else the one that its first argument names.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// programs are the released ones, each with its own command line.
var programs = map[string]func() int{
	"kube-apiserver":          func() int { return cli.Run(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() int { return cli.Run(controllers.NewControllerManagerCommand()) },
	"kube-scheduler":          func() int { return cli.Run(scheduler.NewSchedulerCommand()) },
	"kubelet":                 func() int { return cli.Run(kubelet.NewKubeletCommand(context.Background())) },
	"kubectl":                 runKubectl,
}

func runKubectl() int {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}

// commands are ours. Each returns an error for a person to read.
var commands = map[string]func(args []string) error{
	"etcd":    etcd,
	"up":      up,
	"down":    down,
	"node":    node,
	"devices": devices,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := programs[name]; !known {
		if len(os.Args) < 2 {
			usage()
		}
		name = os.Args[1]
		os.Args = append([]string{name}, os.Args[2:]...)
	}
	if run, known := programs[name]; known {
		os.Exit(run())
	}
	command, known := commands[name]
	if !known {
		usage()
	}
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "control-plane %s: %v\n", name, err)
		os.Exit(1)
	}
}

func usage() {
	var names []string
	for name := range programs {
		names = append(names, name)
	}
	for name := range commands {
		names = append(names, name)
	}
	sort.Strings(names)
	fmt.Fprintf(os.Stderr, "usage: control-plane {%s} [ARGUMENT]...\n", strings.Join(names, "|"))
	os.Exit(2)
}
