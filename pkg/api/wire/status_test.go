package wire

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Each kind is answered over both APIs on purpose: one that is added without is
// found here.
func TestEveryKindHasAStatus(t *testing.T) {
	internal := map[dv1.Error_Kind]bool{dv1.Error_INTERNAL: true, dv1.Error_PORT_TAKEN: true}
	for k := range dv1.Error_Kind_name {
		kind := dv1.Error_Kind(k)
		if _, ok := statuses[kind]; !ok {
			t.Errorf("%s is not in the table", kind)
		}
		if got := Status(kind); (got == http.StatusInternalServerError) != internal[kind] {
			t.Errorf("%s: %d", kind, got)
		}
		if got := Code(kind); (got == connect.CodeInternal) != (kind == dv1.Error_INTERNAL) {
			t.Errorf("%s: %s", kind, got)
		}
	}
	if Status(99) != http.StatusInternalServerError || Code(99) != connect.CodeInternal {
		t.Error("a kind of a later build is not internal")
	}
}

func TestTheKindOfARefusal(t *testing.T) {
	refused := func(m proto.Message) error {
		err := connect.NewError(connect.CodeNotFound, errors.New("no"))
		if d, e := connect.NewErrorDetail(m); e != nil {
			t.Fatal(e)
		} else {
			err.AddDetail(d)
		}
		return err
	}
	for _, c := range []struct {
		err  error
		want dv1.Error_Kind
	}{
		{nil, dv1.Error_INTERNAL},
		{errors.New("no"), dv1.Error_INTERNAL},
		{connect.NewError(connect.CodeNotFound, errors.New("no")), dv1.Error_INTERNAL},
		{refused(&dv1.Node{Id: "a"}), dv1.Error_INTERNAL},
		{refused(&dv1.Error{Kind: dv1.Error_NO_IMAGE}), dv1.Error_NO_IMAGE},
		{fmt.Errorf("asking: %w", refused(&dv1.Error{Kind: dv1.Error_NAME_TAKEN})), dv1.Error_NAME_TAKEN},
	} {
		if got := KindOf(c.err); got != c.want {
			t.Errorf("%v is %s, want %s", c.err, got, c.want)
		}
	}
}

func TestARefusalIsInDockersForm(t *testing.T) {
	for code, retry := range map[int]string{http.StatusServiceUnavailable: "1", http.StatusForbidden: ""} {
		w := httptest.NewRecorder()
		Refuse(w, code, `no "quorum"`)
		if w.Code != code || w.Body.String() != `{"message":"no \"quorum\""}`+"\n" || w.Header().Get("Retry-After") != retry || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
		}
	}
}
