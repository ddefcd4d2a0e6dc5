package controller

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/relay"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/timing"
)

// joining admits hosts that show a token: any controller signs, the leader decides.
type joining struct {
	c     *controller
	log   *tracedLog
	way   *relay.Relay
	vault *vault.Vault
	said  *limit.Throttle // of refusals that are logged
}

// joinRoutes are for hosts without an identity: a token's secret is in the body.
var joinRoutes = route.Table{{Method: http.MethodPost, Pattern: join.Path, At: route.Here, Who: route.Anyone, Body: join.MaxBody}}

func (j *joining) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i, _ := joinRoutes.Match(r.Method, r.URL.Path)
	if i < 0 {
		refuse(w, &refusal{http.StatusNotFound, r.Method + " " + r.URL.Path + " is not known here"})
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, joinRoutes[i].Body))
	req := &join.Request{}
	if err == nil {
		err = json.Unmarshal(b, req)
	}
	if err == nil {
		err = req.Validate()
	}
	if err != nil {
		err = &refusal{http.StatusBadRequest, "reading the request to join: " + err.Error()}
		j.refused(r, err)
		refuse(w, err)
		return
	}
	a, err := j.admit(r.Context(), req)
	if err != nil {
		j.refused(r, err)
		refuse(w, err)
		return
	}
	j.c.Logger.Info("a host joined", "node", req.Name, "id", a.Node, "controller", req.Controller)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // who left asks again
}

// refused logs that somebody was not admitted. Nothing in the line is the
// caller's own, and each host gets one in a while.
func (j *joining) refused(r *http.Request, err error) {
	from := limit.Source(remote(r.RemoteAddr))
	if held, ok := j.said.Allow(from); ok {
		j.c.Logger.Warn("refused a join", "peer", from, "status", statusOf(err), "refused before", held)
	}
}

// remote is the address of a request's other end.
type remote string

func (remote) Network() string  { return "tcp" }
func (r remote) String() string { return string(r) }

func (j *joining) admit(ctx context.Context, req *join.Request) (*join.Answer, error) {
	sum := sha256.Sum256([]byte(req.Secret))
	snap := j.log.Snapshot()
	if e := command.CheckToken(snap.Token(req.TokenID), sum[:], time.Now().UnixNano()); e != nil && snap.Token(req.TokenID) != nil {
		return nil, &refusal{http.StatusForbidden, e.Message} // the leader decides of tokens not known here yet
	}
	if skew := time.Since(req.Now).Round(time.Second); skew > join.MaxSkew || skew < -join.MaxSkew {
		return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("the clock of this host is off by %v (it says %s): set it, and join again", skew, req.Now.UTC().Format(time.RFC3339))}
	}
	if req.Name == "" || req.Agent == "" {
		return nil, &refusal{http.StatusBadRequest, "a host joins with a name and its agent's address"}
	}
	id, err := identity.NewID()
	if err != nil {
		return nil, err
	}
	cluster := snap.Cluster().GetId()
	uri := func(kind, id string) string { return pki.URI(cluster, kind, id) }
	cmd := &dv1.Join{TokenId: req.TokenID, SecretHash: sum[:], Node: &dv1.Node{Id: id, Name: req.Name, Addr: req.Agent, Labels: req.Labels},
		Identities: []*dv1.Identity{{Uri: uri(pki.KindNode, id), Roles: []string{pki.KindNode}}}}
	wrapped := func() error { return nil }
	if req.Controller != "" {
		pub, err := pki.SealingKEM().NewPublicKey(req.SealPublic)
		if err != nil {
			return nil, &refusal{http.StatusBadRequest, "reading the sealing key: " + err.Error()}
		}
		wrapped = func() error {
			wrap, err := j.vault.WrapFor(id, pub)
			cmd.Sealed = []*dv1.Sealed{wrap}
			return err
		}
		cmd.Controller = &dv1.Controller{Id: id, Name: req.Name, Addr: req.Controller}
		cmd.Identities = append(cmd.Identities, &dv1.Identity{Uri: uri(pki.KindController, id), Roles: []string{pki.KindController}, SealPublic: req.SealPublic})
		cmd.Identities = append(cmd.Identities, &dv1.Identity{Uri: uri(pki.KindUser, pki.AdminOf(id)), Roles: []string{pki.RoleAdmin}})
	}
	// The host's key makes a join that is asked again the same join, if it asks for
	// the same: an answer that was given to an agent is none for a controller.
	key := sha256.Sum256(append([]byte(req.Secret), req.NodeKey...))
	hash, err := fingerprint(req)
	if err != nil {
		return nil, err
	}
	var res *dv1.CommandResult
	for range wrapTries {
		if err := wrapped(); err != nil {
			return nil, fmt.Errorf("wrapping the data key: %w", err)
		}
		res, err = j.way.Propose(ctx, &dv1.Command{Key: "join-" + hex.EncodeToString(key[:]), Hash: hash, Principal: pki.TokenURI(req.TokenID), Of: &dv1.Command_Join{Join: cmd}})
		if err != nil || res.GetError().GetKind() != dv1.Error_STALE_KEY {
			break
		}
	}
	if errors.Is(err, consensus.ErrKeyReused) {
		return nil, &refusal{http.StatusConflict, "this host's key was used for another join: remove the data folder's join.tmp, and join again"}
	}
	if err != nil {
		return nil, &refusal{http.StatusServiceUnavailable, "the join could not be recorded: " + err.Error()}
	}
	if e := res.GetError(); e != nil {
		return nil, &refusal{wire.Status(e.Kind), e.Message}
	}
	id = res.NodeId // of the first time, when it was asked again
	return j.sign(cluster, id, req)
}

// wrapTries bounds how often a join meets a data key that was replaced meanwhile.
const wrapTries = 3

// fingerprint is over all that a join asks for; its time aside, which moves on.
func fingerprint(req *join.Request) ([]byte, error) {
	same := *req
	same.Now = time.Time{}
	b, err := json.Marshal(same)
	if err != nil {
		return nil, fmt.Errorf("hashing the request to join: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// sign makes the certificates of what was decided, not of what was asked for.
func (j *joining) sign(cluster, id string, req *join.Request) (*join.Answer, error) {
	ca, err := j.vault.Authority()
	if err != nil {
		return nil, err
	}
	snap := j.log.Snapshot()
	a := &join.Answer{Cluster: cluster, Node: id, Bundle: snap.Cluster().GetTrustBundle()}
	leaf := func(uri string, der []byte, hosts []string) ([]byte, error) {
		pub, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, &refusal{http.StatusBadRequest, "reading a public key: " + err.Error()}
		}
		return ca.Issue(uri, crypto.PublicKey(pub), hosts, time.Now())
	}
	var errs [3]error
	// Nodes are known by their URI only; names and addresses are for docker's
	// clients, which speak to controllers.
	a.NodeCert, errs[0] = leaf(pki.URI(cluster, pki.KindNode, id), req.NodeKey, nil)
	controller := req.Controller != ""
	if controller {
		if snap.Controller(id) == nil {
			return nil, &refusal{http.StatusConflict, "this host was admitted as a controller and removed since: remove the data folder's join.tmp, and join again"}
		}
		a.ControllerCert, errs[1] = leaf(pki.URI(cluster, pki.KindController, id), req.ControllerKey, req.Hosts)
		a.AdminCert, errs[2] = leaf(pki.URI(cluster, pki.KindUser, pki.AdminOf(id)), req.AdminKey, nil)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	for m := range snap.Controllers() {
		if m.Id != id {
			a.Controllers = append(a.Controllers, m.Addr)
		}
	}
	if controller { // its own first
		a.Timing = timing.FromProto(snap.Cluster().GetTiming()).String()
		a.Controllers = append([]string{req.Controller}, a.Controllers...)
	}
	return a, nil
}
