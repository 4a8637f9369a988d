package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is the bed's certificate authority: ca.crt and ca.key in dir, where all that it issues goes too.
type authority struct {
	dir         string
	key         crypto.Signer
	certificate *x509.Certificate
}

// identity is a certificate to issue: whom it names (user and groups of Kubernetes) and where it may serve.
type identity struct {
	file, user string
	groups     []string
	hosts      []string
	ips        []net.IP
}

func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := newTemplate(pkix.Name{CommonName: "meta-cni bed"})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := writePair(dir, "ca", der, key); err != nil {
		return nil, err
	}
	return openAuthority(dir)
}

// openAuthority reads what newAuthority wrote.
func openAuthority(dir string) (*authority, error) {
	certificate, err := readPEM(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	key, err := readPEM(filepath.Join(dir, "ca.key"))
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		return nil, err
	}
	signer, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &authority{dir: dir, key: signer.(crypto.Signer), certificate: parsed}, nil
}

// issue writes FILE.crt and FILE.key for a client and server of that identity.
func (a *authority) issue(who identity) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := newTemplate(pkix.Name{CommonName: who.user, Organization: who.groups})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	template.DNSNames = who.hosts
	template.IPAddresses = who.ips
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing %s: %w", who.file, err)
	}
	return writePair(a.dir, who.file, der, key)
}

// kubeconfig writes a kubeconfig for the certificate that was issued as file, with everything inside.
func (a *authority) kubeconfig(path, server, file string) error {
	var data [3]string
	for i, name := range []string{"ca.crt", file + ".crt", file + ".key"} {
		bytes, err := os.ReadFile(filepath.Join(a.dir, name))
		if err != nil {
			return err
		}
		data[i] = base64.StdEncoding.EncodeToString(bytes)
	}
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: bed
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: bed
  context:
    cluster: bed
    user: %s
current-context: bed
`, server, data[0], file, data[1], data[2], file)
	return os.WriteFile(path, []byte(text), 0o600)
}

// serviceAccountKey writes the pair that signs and checks the tokens of service accounts: sa.key, sa.pub.
func (a *authority) serviceAccountKey() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(a.dir, "sa.pub"), "PUBLIC KEY", public, 0o644); err != nil {
		return err
	}
	return writeKey(filepath.Join(a.dir, "sa.key"), key)
}

// newTemplate is valid since an hour ago, because a guest's clock may be behind, and for ten days: no bed lives longer.
func newTemplate(subject pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      subject,
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(10 * 24 * time.Hour),
	}
}

func writePair(dir, file string, certificate []byte, key crypto.Signer) error {
	path := filepath.Join(dir, file)
	if err := writePEM(path+".crt", "CERTIFICATE", certificate, 0o644); err != nil {
		return err
	}
	return writeKey(path+".key", key)
}

func writeKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM in it", path)
	}
	return block.Bytes, nil
}
