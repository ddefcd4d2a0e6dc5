package wire

import (
	"net/http"
	"net/http/httptest"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Every kind but those that docker answers with 500 has a status of its own choice:
// one that is added without is found here.
func TestEveryKindHasAStatus(t *testing.T) {
	internal := map[dv1.Error_Kind]bool{dv1.Error_INTERNAL: true, dv1.Error_PORT_TAKEN: true}
	for k := range dv1.Error_Kind_name {
		kind := dv1.Error_Kind(k)
		if got := Status(kind); (got == http.StatusInternalServerError) != internal[kind] {
			t.Errorf("%s: %d", kind, got)
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
