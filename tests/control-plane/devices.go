package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	deviceplugin "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// offer is a device plugin whose devices are names and nothing else.
type offer struct {
	deviceplugin.UnimplementedDevicePluginServer
	ids []string
}

// devices offers devices to the kubelet of the node where it runs, prints "ready" once kubelet knows of them, and runs
// until its standard input ends.
func devices(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: devices RESOURCE ID...")
	}
	const endpoint = "bed.sock"
	path := filepath.Join(deviceplugin.DevicePluginPath, endpoint)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	defer server.Stop()
	deviceplugin.RegisterDevicePluginServer(server, &offer{ids: args[1:]})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	kubelet, err := grpc.NewClient("unix://"+deviceplugin.KubeletSocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request := &deviceplugin.RegisterRequest{Version: deviceplugin.Version, Endpoint: endpoint, ResourceName: args[0]}
	if _, err := deviceplugin.NewRegistrationClient(kubelet).Register(ctx, request, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("registering %s with kubelet: %w", args[0], err)
	}
	fmt.Println("ready")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(io.Discard, os.Stdin)
	}()
	select {
	case <-ended:
		return nil
	case err := <-served:
		return fmt.Errorf("serving %s: %w", path, err)
	}
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
	for range request.ContainerRequests {
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceplugin.ContainerAllocateResponse{})
	}
	return answer, nil
}
