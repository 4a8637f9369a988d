package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

// auditPolicy logs who asks for what, twice: when the request is received (written before it is worked on, so a count
// of these is exact as soon as the client has its answer) and when it is complete (with the code; may be written just
// after). The server's requests to itself are nobody's concern.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  users: ["system:apiserver"]
- level: Metadata
`

// patience is how long a server on a busy machine may take for one step.
const patience = 90 * time.Second

// apiArguments is the command line of kube-apiserver.
func (b *bed) apiArguments(etcdURL string) []string {
	pki := func(name string) string { return filepath.Join(b.dir, "pki", name) }
	arguments := []string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		"--secure-port=" + strconv.Itoa(b.port), "--permit-port-sharing=true",
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"), "--cert-dir=" + pki(""),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("sa.pub"),
		"--service-account-signing-key-file=" + pki("sa.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=10.96.0.0/24", "--enable-priority-and-fairness=false",
		"--kubelet-client-certificate=" + pki("admin.crt"), "--kubelet-client-key=" + pki("admin.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=" + filepath.Join(b.dir, "audit-policy.yaml"),
		"--audit-log-path=" + filepath.Join(b.dir, "audit.log"), "--audit-log-mode=blocking",
		"--profiling=false",
		// Alpha in 1.34: the claim that the scheduler makes for a resource of a device plugin, in the pod's status.
		"--feature-gates=DRAExtendedResource=true",
	}
	if !b.controllers {
		// It waits for a default service account, which only a controller makes.
		arguments = append(arguments, "--disable-admission-plugins=ServiceAccount")
	}
	return arguments
}

// controllerArguments is the command line of kube-controller-manager or kube-scheduler. Neither serves anything.
func (b *bed) controllerArguments(name string) []string {
	config := filepath.Join(b.dir, name+".kubeconfig")
	arguments := []string{
		"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
		"--secure-port=0", "--leader-elect=false",
	}
	if name == "kube-controller-manager" {
		pki := filepath.Join(b.dir, "pki")
		arguments = append(arguments, "--use-service-account-credentials=true",
			"--service-account-private-key-file="+filepath.Join(pki, "sa.key"),
			"--root-ca-file="+filepath.Join(pki, "ca.crt"))
	}
	return arguments
}

// startAPI starts the API server and waits until it says that it is ready.
func (b *bed) startAPI() error {
	var err error
	if b.api, err = b.spawn("kube-apiserver", nil, b.apiArguments(b.etcdURL)...); err != nil {
		return err
	}
	return b.await("/readyz")
}

// prepare applies the manifests and waits until all that they define is served.
func (b *bed) prepare() error {
	// The server makes these after it is ready.
	for _, namespace := range []string{"default", "kube-system"} {
		if err := b.await("/api/v1/namespaces/" + namespace); err != nil {
			return err
		}
	}
	if len(b.apply) == 0 {
		return nil
	}
	// strict: a field that the server does not know is an error.
	config := filepath.Join(b.dir, "admin.kubeconfig")
	arguments := []string{"--kubeconfig=" + config, "apply", "--server-side", "--validate=strict"}
	for _, file := range b.apply {
		arguments = append(arguments, "--filename="+file)
	}
	kubectl, err := b.spawn("kubectl", nil, arguments...)
	if err != nil {
		return err
	}
	if <-kubectl.exited; kubectl.err != nil {
		return kubectl.died()
	}
	return b.awaitDefinitions()
}

// awaitDefinitions waits until each version of each custom resource definition is served: a little later than it is
// Established.
func (b *bed) awaitDefinitions() error {
	body, err := b.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
	if err != nil {
		return err
	}
	var found struct {
		Items []struct {
			Spec struct {
				Group    string
				Names    struct{ Plural string }
				Versions []struct{ Name string }
			}
		}
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return fmt.Errorf("the list of custom resource definitions: %w", err)
	}
	for _, item := range found.Items {
		for _, version := range item.Spec.Versions {
			path := "/apis/" + item.Spec.Group + "/" + version.Name + "/" + item.Spec.Names.Plural
			if err := b.await(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// await asks until the API server answers a path with 200.
func (b *bed) await(path string) error {
	deadline := time.After(patience)
	for {
		_, err := b.get(path)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-b.api.exited:
			return b.api.died()
		case <-b.ended:
			return errEnded
		case <-deadline:
			return fmt.Errorf("the API server is not ready after %v: %w; see %s", patience, err, b.api.log)
		}
	}
}

// get reads one path as the administrator.
func (b *bed) get(path string) ([]byte, error) {
	if b.client == nil {
		pair, err := tls.LoadX509KeyPair(filepath.Join(b.dir, "pki", "admin.crt"), filepath.Join(b.dir, "pki", "admin.key"))
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AddCert(b.pki.certificate)
		b.client = &http.Client{
			Timeout:   5 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
		}
	}
	answer, err := b.client.Get(b.server() + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, errors.New(path + ": " + answer.Status)
	}
	return body, nil
}
