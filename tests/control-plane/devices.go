package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// deviceInfo is where a device plugin says what a device is, in the form that the Network Plumbing Working Group agreed
// on: for who attaches it.
const deviceInfo = "/var/run/k8s.cni.cncf.io/devinfo/dp"

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// offer is a device plugin of one resource, whose devices are names; of PCI addresses it writes a device-info file.
type offer struct {
	deviceplugin.UnimplementedDevicePluginServer
	resource string
	ids      []string
}

// devices offers devices to the kubelet of the node where it runs, also when that starts anew, prints "ready" once
// kubelet first knows of all of them, and runs until its standard input ends.
func devices(args []string) error {
	offers, err := parseOffers(args)
	if err != nil {
		return err
	}
	failed := make(chan error, len(offers))
	known := make(chan struct{}, len(offers))
	for _, o := range offers {
		go func() { failed <- o.run(known) }()
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, os.Stdin)
	}()
	for left := len(offers); ; {
		select {
		case <-ended:
			return nil
		case err := <-failed:
			return err
		case <-known:
			if left--; left == 0 {
				fmt.Println("ready")
			}
		}
	}
}

// parseOffers reads RESOURCE ID... [-- RESOURCE ID...]...
func parseOffers(args []string) ([]*offer, error) {
	var offers []*offer
	for len(args) > 0 {
		end := 0
		for end < len(args) && args[end] != "--" {
			end++
		}
		if end < 2 {
			break
		}
		offers = append(offers, &offer{resource: args[0], ids: args[1:end]})
		args = args[min(end+1, len(args)):]
	}
	if len(offers) == 0 || len(args) > 0 {
		return nil, errors.New("usage: devices RESOURCE ID... [-- RESOURCE ID...]...")
	}
	return offers, nil
}

// run serves one kubelet after the other: one that starts removes the sockets of those that registered before.
func (o *offer) run(known chan<- struct{}) error {
	endpoint := "bed-" + strings.NewReplacer("/", "-", ".", "-").Replace(o.resource) + ".sock"
	path := filepath.Join(deviceplugin.DevicePluginPath, endpoint)
	for first := true; ; first = false {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		listener, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		// Or a server that ends later would remove the next one's.
		listener.(*net.UnixListener).SetUnlinkOnClose(false)
		server := grpc.NewServer()
		deviceplugin.RegisterDevicePluginServer(server, o)
		go server.Serve(listener)
		err = o.register(endpoint, path)
		if err == nil {
			if first {
				known <- struct{}{}
			}
			for there(path) {
				time.Sleep(200 * time.Millisecond)
			}
		}
		server.Stop()
		if err != nil && there(path) {
			return fmt.Errorf("registering %s with kubelet: %w", o.resource, err)
		}
	}
}

func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// register waits for kubelet as long as our socket is there: one that comes up meanwhile has removed it.
func (o *offer) register(endpoint, path string) error {
	soon := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second}}
	kubelet, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(soon))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		for there(path) && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
		cancel()
	}()
	request := &deviceplugin.RegisterRequest{Version: deviceplugin.Version, Endpoint: endpoint, ResourceName: o.resource}
	_, err = deviceplugin.NewRegistrationClient(kubelet).Register(ctx, request, grpc.WaitForReady(true))
	return err
}

func (o *offer) GetDevicePluginOptions(context.Context, *deviceplugin.Empty) (*deviceplugin.DevicePluginOptions, error) {
	return &deviceplugin.DevicePluginOptions{}, nil
}

// ListAndWatch says once what there is: it does not change.
func (o *offer) ListAndWatch(_ *deviceplugin.Empty, stream deviceplugin.DevicePlugin_ListAndWatchServer) error {
	answer := &deviceplugin.ListAndWatchResponse{}
	for _, id := range o.ids {
		answer.Devices = append(answer.Devices, &deviceplugin.Device{ID: id, Health: deviceplugin.Healthy})
	}
	if err := stream.Send(answer); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate adds nothing to the containers.
func (o *offer) Allocate(_ context.Context, request *deviceplugin.AllocateRequest) (*deviceplugin.AllocateResponse, error) {
	answer := &deviceplugin.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		for _, id := range container.DevicesIds {
			if err := o.describe(id); err != nil {
				return nil, err
			}
		}
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceplugin.ContainerAllocateResponse{})
	}
	return answer, nil
}

// describe writes the device-info file of a PCI device, if it is one.
func (o *offer) describe(id string) error {
	if !pciAddress.MatchString(id) {
		return nil
	}
	text, err := json.Marshal(map[string]any{
		"type": "pci", "version": "1.1.0", "pci": map[string]string{"pci-address": id}})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(deviceInfo, 0o755); err != nil {
		return err
	}
	name := strings.ReplaceAll(o.resource, "/", "-") + "-" + id + "-device.json"
	return os.WriteFile(filepath.Join(deviceInfo, name), text, 0o644)
}
