package admission

import (
	"context"
	"crypto"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/timing"
)

// wrapTries bounds how often a join is retried because the data key was rotated
// meanwhile.
const wrapTries = 3

func refuse(code int, format string, args ...any) error {
	return &join.RefusedError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// admit has the join decided, and signs what was decided. Its errors are
// *join.RefusedError if the host, or its operator, can fix them.
func (a *Admission) admit(ctx context.Context, req *join.Request) (*join.Answer, error) {
	s := a.o.Snapshot()
	if err := check(s, req, time.Now()); err != nil {
		return nil, err
	}
	var seal hpke.PublicKey
	if req.Controller != "" {
		var err error
		if seal, err = pki.SealingKEM().NewPublicKey(req.SealPublic); err != nil {
			return nil, refuse(http.StatusBadRequest, "reading the sealing key: %v", err)
		}
	}
	id, err := identity.NewID()
	if err != nil {
		return nil, err
	}
	key, hash, err := fingerprint(req)
	if err != nil {
		return nil, err
	}
	var res *dv1.CommandResult
	for range wrapTries {
		j := asked(s.Cluster().GetId(), id, req)
		if seal != nil {
			wrap, err := a.o.Vault.WrapFor(id, seal)
			if err != nil {
				return nil, fmt.Errorf("wrapping the data key: %w", err)
			}
			j.Sealed = []*dv1.Sealed{wrap}
		}
		res, err = a.o.Propose(ctx, &dv1.Command{Key: key, Hash: hash, Principal: pki.TokenURI(req.TokenID), Of: &dv1.Command_Join{Join: j}})
		if err != nil || res.GetError().GetKind() != dv1.Error_STALE_KEY {
			break
		}
	}
	if errors.Is(err, consensus.ErrKeyReused) {
		return nil, refuse(http.StatusConflict, "this host's key was used for another join: remove the data folder's join.tmp, and join again")
	}
	if err != nil {
		return nil, refuse(http.StatusServiceUnavailable, "the join could not be recorded: %v", err)
	}
	if e := res.GetError(); e != nil {
		return nil, refuse(wire.Status(e.Kind), "%s", e.Message)
	}
	return a.sign(res.NodeId, req) // of a retried join, the first attempt's id
}

// check refuses what no state would admit, before anything is decided.
func check(s *state.Snapshot, req *join.Request, now time.Time) error {
	sum := sha256.Sum256([]byte(req.Secret))
	// Tokens that are unknown here are left to the leader.
	if t := s.Token(req.TokenID); t != nil {
		if e := command.CheckToken(t, sum[:], now.UnixNano()); e != nil {
			return refuse(http.StatusForbidden, "%s", e.Message)
		}
	}
	if skew := now.Sub(req.Now).Round(time.Second); skew.Abs() > join.MaxSkew {
		return refuse(http.StatusBadRequest, "the clock of this host is off by %v (it says %s): set it, and join again", skew, req.Now.UTC().Format(time.RFC3339))
	}
	if req.Name == "" || req.Agent == "" {
		return refuse(http.StatusBadRequest, "a join needs a host name and its agent's address")
	}
	keys := [][]byte{req.NodeKey}
	if req.Controller != "" {
		keys = append(keys, req.ControllerKey, req.AdminKey)
	}
	for _, der := range keys {
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			return refuse(http.StatusBadRequest, "reading a public key: %v", err)
		}
	}
	return nil
}

// asked returns the command for a request, without what is sealed.
func asked(cluster, id string, req *join.Request) *dv1.Join {
	sum := sha256.Sum256([]byte(req.Secret))
	j := &dv1.Join{TokenId: req.TokenID, SecretHash: sum[:], Node: &dv1.Node{Id: id, Name: req.Name, Addr: req.Agent, Labels: req.Labels},
		Identities: []*dv1.Identity{{Uri: pki.URI(cluster, pki.KindNode, id), Roles: []string{pki.KindNode}}}}
	if req.Controller != "" {
		j.Controller = &dv1.Controller{Id: id, Name: req.Name, Addr: req.Controller}
		j.Identities = append(j.Identities,
			&dv1.Identity{Uri: pki.URI(cluster, pki.KindController, id), Roles: []string{pki.KindController}, SealPublic: req.SealPublic},
			&dv1.Identity{Uri: pki.URI(cluster, pki.KindUser, pki.AdminOf(id)), Roles: []string{pki.RoleAdmin}})
	}
	return j
}

// fingerprint makes a join idempotent: its key is the host's public key, its hash
// the request without its time, which changes with each retry. So the answer to an
// agent isn't reused for a controller.
func fingerprint(req *join.Request) (key string, hash []byte, err error) {
	same := *req
	same.Now = time.Time{}
	b, err := json.Marshal(same)
	if err != nil {
		return "", nil, fmt.Errorf("hashing the request to join: %w", err)
	}
	host, all := sha256.Sum256(append([]byte(req.Secret), req.NodeKey...)), sha256.Sum256(b)
	return "join-" + hex.EncodeToString(host[:]), all[:], nil
}

// sign issues the certificates for what was decided, not for what was requested.
func (a *Admission) sign(id string, req *join.Request) (*join.Answer, error) {
	ca, err := a.o.Vault.Authority()
	if err != nil {
		return nil, err
	}
	s := a.o.Snapshot()
	cluster := s.Cluster().GetId()
	out := &join.Answer{Cluster: cluster, Node: id, Bundle: s.Cluster().GetTrustBundle()}
	leaf := func(kind, id string, der []byte, hosts []string) ([]byte, error) {
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("reading a public key: %w", err)
		}
		return ca.Issue(pki.URI(cluster, kind, id), crypto.PublicKey(pub), hosts, time.Now())
	}
	var errs [3]error
	// Nodes are identified by their URI only; names and addresses are for docker's
	// clients, which connect to controllers.
	out.NodeCert, errs[0] = leaf(pki.KindNode, id, req.NodeKey, nil)
	if req.Controller != "" {
		if s.Controller(id) == nil {
			return nil, refuse(http.StatusConflict, "this host was admitted as a controller and removed since: remove the data folder's join.tmp, and join again")
		}
		out.ControllerCert, errs[1] = leaf(pki.KindController, id, req.ControllerKey, req.Hosts)
		out.AdminCert, errs[2] = leaf(pki.KindUser, pki.AdminOf(id), req.AdminKey, nil)
		out.Timing = timing.FromProto(s.Cluster().GetTiming()).String()
		out.Controllers = []string{req.Controller} // its own first
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for m := range s.Controllers() {
		if m.Id != id {
			out.Controllers = append(out.Controllers, m.Addr)
		}
	}
	return out, nil
}
