package main

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// What every simulated task runs, and its image.
const (
	image   = "docker.io/library/alpine:latest"
	digest  = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	perSpec = 100 // tasks that share a spec, and the label "app"
)

var imageConfig = []byte(`{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[{"created":"2024-01-01T00:00:00Z","created_by":"ADD x"}]}`)

// request is a create request as sent by docker run.
func request(app string, args ...string) []byte {
	b, err := json.Marshal(container.CreateRequest{
		Config: &container.Config{Image: "alpine", Cmd: args, Env: []string{"MODE=production"}, Labels: map[string]string{"app": app},
			AttachStdout: true, AttachStderr: true},
		HostConfig: &container.HostConfig{NetworkMode: "default", RestartPolicy: container.RestartPolicy{Name: "no"}},
	})
	if err != nil {
		panic(err) // of constants
	}
	return b
}

// nodeID names the n-th simulated node.
func nodeID(n int) string { return fmt.Sprintf("%032x", 0xd0000000+n) }

// nodeOf returns what the n-th node reports in its hello.
func nodeOf(n int) *dv1.Node {
	return &dv1.Node{Id: nodeID(n), Name: fmt.Sprintf("host-%d", n), Addr: "127.0.0.1:1",
		Capacity: &dv1.Capacity{NanoCpus: 64e9, Memory: 512 << 30, Arch: "amd64", Os: "linux"}}
}

// id returns 32 bytes that look as random as real ids.
func id(kind string, n int) []byte {
	s := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, n))
	return s[:]
}

// seed builds a state as a fleet would have reached it, entry by entry.
type seed struct {
	store   *state.Store
	index   uint64
	effects []*dv1.Effect
}

func (s *seed) add(e ...*dv1.Effect) error {
	if s.effects = append(s.effects, e...); len(s.effects) > 1000 {
		return s.flush()
	}
	return nil
}

func (s *seed) flush() error {
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, MinVersion: 1, Base: s.store.Snapshot().Index(),
		Time: time.Now().UnixNano(), Effects: s.effects})
	if err != nil {
		return err
	}
	s.effects = nil
	s.index++
	_, err = s.store.Apply(s.index, b)
	return err
}

// plant gives a host that bootstrap.Up created a snapshot with nodes and running tasks,
// spread evenly, so that its controller starts as that of a grown fleet.
func plant(dataDir, addr string, nodes, tasks int, token pki.Token) error {
	init, err := bootstrap.Pending(dataDir)
	if err != nil {
		return err
	}
	s := &seed{store: state.NewStore()}
	effects, result := command.Decide(state.NewTxn(s.store.Snapshot()), init, time.Now().UnixNano())
	if result.Error != nil {
		return fmt.Errorf("deciding the first command: %s", result.Error.Message)
	}
	cluster := init.GetInit().GetCluster().GetId()
	errs := []error{s.add(effects...), s.add(
		&dv1.Effect{Of: &dv1.Effect_Token{Token: &dv1.Token{Id: token.ID, Hash: token.Hash(), Role: pki.KindController}}},
		&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: digest, Config: imageConfig}}},
		&dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: image, Digest: digest}}},
	)}
	for n := range nodes {
		node := nodeOf(n)
		node.Subnet, node.Liveness, node.Availability = fmt.Sprintf("10.%d.%d.0/24", n/256, n%256), dv1.Node_READY, dv1.Node_ACTIVE
		errs = append(errs, s.add(&dv1.Effect{Of: &dv1.Effect_Node{Node: node}},
			&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI(cluster, pki.KindNode, node.Id), Roles: []string{pki.KindNode}}}}))
	}
	now := time.Now().UnixNano()
	var spec []byte
	for n := range tasks {
		if n%perSpec == 0 {
			body := request(fmt.Sprintf("app-%d", n/perSpec), "sleep", "1000000")
			sum := sha256.Sum256(append(append(body[:len(body):len(body)], 0), digest...))
			spec = sum[:]
			errs = append(errs, s.add(&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: spec, Body: body, Image: "alpine", Digest: digest}}}))
		}
		created := now - int64(tasks-n)*int64(time.Millisecond)
		errs = append(errs, s.add(
			&dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: id("run", n), SpecId: spec, Created: created, Principal: "unix:0"}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id("task", n), RunId: id("run", n), SpecId: spec, Name: fmt.Sprintf("task-%d", n),
				NodeId: nodeID(n % nodes), Desired: dv1.Desired_RUNNING, Attempt: 1, Created: created, Started: created}}}))
	}
	if err := errors.Join(append(errs, s.flush())...); err != nil {
		return fmt.Errorf("seeding the state: %w", err)
	}
	return s.write(filepath.Join(dataDir, "controller", "raft"), init.GetInit().GetController().GetId(), addr)
}

// write writes the state where raft looks for its newest snapshot.
func (s *seed) write(dir, controller, addr string) error {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, 2, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(addr))
	only := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(controller), Address: raft.ServerAddress(addr)}}}
	sink, err := snaps.Create(raft.SnapshotVersionMax, s.index, 1, only, 1, trans)
	if err != nil {
		return err
	}
	if err := s.store.Snapshot().Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// authority opens the cluster's authority, as kept by a first host until its first entry
// is committed.
func authority(dataDir string) (*pki.Authority, error) {
	files, err := pki.LoadFiles(identity.ControllerPKI(dataDir))
	if err != nil {
		return nil, err
	}
	init, err := bootstrap.Pending(dataDir)
	if err != nil {
		return nil, err
	}
	sealed := init.GetInit().GetSealed()
	key, err := vault.Unwrap(sealed[1], files.Seal)
	if err != nil {
		return nil, err
	}
	raw, err := key.Open(sealed[0])
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the authority's key is a %T", k)
	}
	return &pki.Authority{Cert: files.Bundle[0], Key: signer}, nil
}
