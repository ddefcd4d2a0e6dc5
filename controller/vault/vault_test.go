package vault

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hpke"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus/consensustest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// fleet is a log of a cluster, with the files of its controllers.
type fleet struct {
	*consensustest.Log
	t     *testing.T
	ca    *pki.Authority
	files map[string]*pki.Files // of controllers, by id
}

// newFleet makes a cluster as its first controller does, c1, with others added.
func newFleet(t *testing.T, others ...string) *fleet {
	t.Helper()
	f := &fleet{Log: consensustest.NewLog(), t: t, ca: pkitest.Authority(t, "c"), files: map[string]*pki.Files{}}
	for _, id := range append([]string{"c1"}, others...) {
		f.files[id] = pkitest.Files(t, f.ca, "c", pki.KindController, id)
	}
	key, err := NewDataKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(f.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := key.Seal(command.AuthorityName, der)
	if err != nil {
		t.Fatal(err)
	}
	f.ok(&dv1.Command{Principal: f.uri("c1"), Of: &dv1.Command_Init{Init: &dv1.Init{
		Cluster:    &dv1.Cluster{Id: "c", Pool: "10.210.0.0/16", TrustBundle: [][]byte{f.ca.Cert.Raw}},
		Identities: []*dv1.Identity{f.identity("c1"), {Uri: pki.URI("c", pki.KindUser, "root"), Roles: []string{pki.RoleAdmin}}},
		Sealed:     []*dv1.Sealed{authority, f.wrap(key, "c1")},
		Controller: &dv1.Controller{Id: "c1", Name: "c1", Addr: "10.0.0.1:7443"},
	}}})
	for _, id := range others {
		tk, err := pki.NewToken(pki.Pin(f.ca.Cert.Raw))
		if err != nil {
			t.Fatal(err)
		}
		f.ok(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: tk.ID, Hash: tk.Hash(), Role: "controller"}}}})
		f.ok(&dv1.Command{Of: &dv1.Command_Join{Join: &dv1.Join{TokenId: tk.ID, SecretHash: tk.Hash(), Node: &dv1.Node{Id: id, Name: id, Addr: id + ":7444"},
			Controller: &dv1.Controller{Id: id, Name: id, Addr: id + ":7443"},
			Identities: []*dv1.Identity{f.identity(id), {Uri: pki.URI("c", pki.KindNode, id), Roles: []string{pki.KindNode}}},
			Sealed:     []*dv1.Sealed{f.wrap(key, id)}}}})
	}
	return f
}

func (f *fleet) uri(id string) string { return pki.URI("c", pki.KindController, id) }

func (f *fleet) public(id string) hpke.PublicKey {
	f.t.Helper()
	k, err := pki.SealingKEM().NewPrivateKey(f.files[id].Seal)
	if err != nil {
		f.t.Fatal(err)
	}
	return k.PublicKey()
}

func (f *fleet) identity(id string) *dv1.Identity {
	return &dv1.Identity{Uri: f.uri(id), Roles: []string{pki.KindController}, SealPublic: f.public(id).Bytes()}
}

func (f *fleet) wrap(key *DataKey, id string) *dv1.Sealed {
	f.t.Helper()
	s, err := key.WrapFor(command.WrapName(key.ID, id), f.public(id))
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// ok has a command decided, by whoever may ask for it unless it names somebody.
func (f *fleet) ok(c *dv1.Command) {
	f.t.Helper()
	if c.Principal == "" {
		c = accesstest.Named(f.Snapshot(), c)
	}
	if err := decided(f.Propose(f.t.Context(), c)); err != nil {
		f.t.Fatalf("%T: %v", c.Of, err)
	}
}

func (f *fleet) open(id string) *Vault {
	f.t.Helper()
	v, err := Open(f.files[id], f.Snapshot)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fleet) remove(id string) {
	f.t.Helper()
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: id}}})
}

func (f *fleet) sealed() (names []string) {
	for s := range f.Snapshot().SealedAll() {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

func TestOpenProvesWhatTheLogIs(t *testing.T) {
	f := newFleet(t)
	other := pkitest.Files(t, f.ca, "other", pki.KindController, "c1")
	late := pkitest.Files(t, f.ca, "c", pki.KindController, "late")
	wrongKey := *f.files["c1"]
	wrongKey.Seal = late.Seal
	empty := state.NewStore().Snapshot
	for want, c := range map[string]struct {
		files    *pki.Files
		snapshot func() *state.Snapshot
	}{
		"has no cluster":                            {f.files["c1"], empty},
		"belongs to cluster c, but this host's":     {other, f.Snapshot},
		"holds no data key for this":                {late, f.Snapshot},
		"unsealing with the key in " + wrongKey.Dir: {&wrongKey, f.Snapshot},
	} {
		if _, err := Open(c.files, c.snapshot); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f.open("c1")
}

func TestAnyControllerSignsWithTheAuthoritysKey(t *testing.T) {
	f := newFleet(t, "c2")
	for id := range f.files {
		ca, err := f.open(id).Authority()
		if err != nil {
			t.Fatal(err)
		}
		if pub, ok := f.ca.Key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(ca.Key.Public()) || !ca.Cert.Equal(f.ca.Cert) {
			t.Errorf("%s opened another authority", id)
		}
	}
}

// keep runs a Keeper for a term that the test ends.
func (f *fleet) keep(v *Vault) (end func()) {
	f.t.Helper()
	k := NewKeeper(KeeperOptions{Vault: v, Self: f.files["c1"].Principal, Log: f, Logger: slog.New(slog.DiscardHandler)})
	f.OnCommit(k.Committed)
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	return func() {
		f.t.Helper()
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	}
}

// What a removed controller knows opens nothing that is sealed from then on: one entry
// replaces the data key, and the gossip's key is another.
func TestAKeeperReplacesWhatARemovedControllerKnows(t *testing.T) {
	f := newFleet(t, "c2", "c3")
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		v := f.open("c1")
		before, err := v.Key(f.Snapshot())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewRecoveryKey(t.Context(), before, f.asController); err != nil {
			t.Fatal(err)
		}
		recovery := f.Snapshot().Sealed(command.RecoveryName)
		end := f.keep(v)
		defer end()
		synctest.Wait()
		first := v.GossipKeys()
		if len(first) != 1 || len(first[0]) != 32 {
			t.Fatalf("the gossip has %d keys", len(first))
		}

		f.remove("c3")
		synctest.Wait()
		s := f.Snapshot()
		for sealed := range s.SealedAll() {
			if sealed.DataKey == before.ID || strings.HasSuffix(sealed.Name, "/c3") {
				t.Errorf("%s is still sealed with the old data key", sealed.Name)
			}
			if _, err := Unwrap(sealed, f.files["c3"].Seal); err == nil {
				t.Errorf("the removed controller opens %s", sealed.Name)
			}
		}
		if r := s.Sealed(command.RecoveryName); !bytes.Equal(r.GetRecipient(), recovery.Recipient) || bytes.Equal(r.GetBlob(), recovery.Blob) {
			t.Errorf("the recovery key's wrap is %v", r)
		}
		for _, id := range []string{"c1", "c2"} {
			if _, err := f.open(id).Authority(); err != nil {
				t.Errorf("%s: %v", id, err)
			}
		}
		keys := v.GossipKeys()
		if len(keys) != 2 || bytes.Equal(keys[0], first[0]) || !bytes.Equal(keys[1], first[0]) {
			t.Errorf("the gossip has %d keys after a removal, want a new one first", len(keys))
		}
		time.Sleep(9 * time.Second)
		synctest.Wait()
		if n := len(v.GossipKeys()); n != 2 {
			t.Errorf("within the overlap the gossip has %d keys", n)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if now := v.GossipKeys(); len(now) != 1 || !bytes.Equal(now[0], keys[0]) {
			t.Errorf("after the overlap the gossip has %d keys", len(now))
		}
	})
}

func (f *fleet) asController(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	c.Principal = f.uri("c1")
	return f.Propose(ctx, c)
}

// A term may end at any moment, and the next leader goes on; where nothing is due,
// nothing is proposed.
func TestAKeeperGoesOnWhereAnotherEnded(t *testing.T) {
	f := newFleet(t, "c2")
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		broken := errors.New("leadership was lost")
		fails := true
		asked := 0
		var mu sync.Mutex
		f.Before(func(c *dv1.Command) error {
			mu.Lock()
			defer mu.Unlock()
			asked++
			if fails && c.GetRotateDataKey() != nil {
				return broken
			}
			return nil
		})
		f.remove("c2")
		end := f.keep(f.open("c1"))
		time.Sleep(retryAfter + time.Millisecond)
		synctest.Wait()
		if got := f.sealed(); slices.Contains(got, "gossip-key/00000001") {
			t.Errorf("a value was sealed with a data key that is to go: %v", got)
		}
		end()
		mu.Lock()
		fails = false
		mu.Unlock()
		end = f.keep(f.open("c1"))
		synctest.Wait()
		if exposed(f.Snapshot()) {
			t.Error("the next leader left the data key as it was")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		before := asked
		mu.Unlock()
		f.ok(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: "t", Hash: make([]byte, 32), Role: "agent"}}}})
		time.Sleep(time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if asked != before+1 {
			t.Errorf("%d commands were proposed though nothing was due", asked-before-1)
		}
		end()
	})
}

// A data key that was replaced since what it seals was made is no failure.
func TestAValueOfAnOldDataKeyIsRefused(t *testing.T) {
	f := newFleet(t)
	old, err := f.open("c1").Key(f.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	rotate, err := old.Rotate(f.Snapshot().SealedAll(), map[string][]byte{"c1": f.public("c1").Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	late, err := old.Seal("late", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	f.ok(&dv1.Command{Principal: f.uri("c1"), Of: &dv1.Command_RotateDataKey{RotateDataKey: rotate}})
	for what, c := range map[string]*dv1.Command{
		"a value of the old key": {Of: &dv1.Command_PutSealed{PutSealed: &dv1.PutSealed{Sealed: late}}},
		"the same rotation":      {Of: &dv1.Command_RotateDataKey{RotateDataKey: rotate}},
	} {
		if r, err := f.asController(t.Context(), c); err != nil || r.GetError().GetKind() != dv1.Error_STALE_KEY {
			t.Errorf("%s: %v %v", what, r, err)
		}
	}
}

// The admin whose key several hosts have goes with the first controller that is removed.
func TestTheSharedAdminGoesWithARemovedController(t *testing.T) {
	f := newFleet(t, "c2")
	shared := pki.URI("c", pki.KindUser, sharedAdmin)
	f.ok(&dv1.Command{Principal: f.uri("c1"), Of: putIdentity(&dv1.Identity{Uri: shared, Roles: []string{pki.RoleAdmin}}).Of})
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		end := f.keep(f.open("c1"))
		defer end()
		synctest.Wait()
		if f.Snapshot().Identity(shared).GetRevoked() {
			t.Error("revoked while nobody is gone")
		}
		f.remove("c2")
		synctest.Wait()
		if i := f.Snapshot().Identity(shared); !i.GetRevoked() {
			t.Errorf("%v", i)
		}
	})
}

func TestOwnAdmin(t *testing.T) {
	f := newFleet(t)
	self := f.files["c1"].Principal
	own := pki.AdminOf(self.ID)
	for name, c := range map[string]struct {
		has  string // the id of the admin that is there
		half bool   // its key is another one's
		want string
	}{
		"none: an agent's host":    {"", false, ""},
		"its own":                  {own, false, own},
		"the shared one":           {sharedAdmin, false, own},
		"the half of a new one":    {own, true, own},
		"the half of a shared one": {sharedAdmin, true, own},
	} {
		dir := filepath.Join(t.TempDir(), "admin")
		if c.has != "" {
			copyAll(t, pkitest.Files(t, f.ca, "c", pki.KindUser, c.has).Dir, dir)
		}
		if c.half {
			b, err := os.ReadFile(filepath.Join(pkitest.Files(t, f.ca, "c", pki.KindUser, c.has).Dir, "key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "key.pem"), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before := contents(dir)
		err := OwnAdmin(t.Context(), AdminOptions{Dir: dir, Self: self, Snapshot: f.Snapshot, Propose: f.asController,
			Authority: f.open("c1").Authority, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got, err := pki.LoadFiles(dir)
		if c.want == "" && !errors.Is(err, fs.ErrNotExist) || c.want != "" && (err != nil || got.Principal.ID != c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if c.has == own && !c.half && !maps.Equal(before, contents(dir)) {
			t.Errorf("%s: it was made anew", name)
		}
	}
}

// Without a leader the host keeps what it has, and one line says so.
func TestOwnAdminWaitsForALeader(t *testing.T) {
	f := newFleet(t)
	dir := filepath.Join(t.TempDir(), "admin")
	copyAll(t, pkitest.Files(t, f.ca, "c", pki.KindUser, sharedAdmin).Dir, dir)
	v := f.open("c1")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tries := 0
		err := OwnAdmin(t.Context(), AdminOptions{Dir: dir, Self: f.files["c1"].Principal, Snapshot: f.Snapshot, Authority: v.Authority,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Propose: func(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
				if tries++; tries < 5 {
					return nil, errors.New("no leader")
				}
				return f.asController(ctx, c)
			}})
		if err != nil || tries != 5 || strings.Count(log.String(), "creating an admin identity") != 1 {
			t.Errorf("%v after %d tries, log %q", err, tries, log.String())
		}
	})
}

func copyAll(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func contents(dir string) map[string]string {
	out := map[string]string{}
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		out[e.Name()] = string(b)
	}
	return out
}
