package peer

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// cutOff answers with the first byte of several.
func cutOff(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "8")
	_, _ = io.WriteString(w, "7")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// Others are asked all at once, and who says nothing of use is left out: what one of
// them has must not depend on another.
func TestWhatOthersHaveIsGatheredFromWhoAnswers(t *testing.T) {
	m := newMember()
	asked := make(chan string, 8)
	serve := func(h http.HandlerFunc) (addr string) {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked <- r.Method + " " + r.URL.RequestURI()
			h(w, r)
		}))
		srv.EnableHTTP2 = true
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.Listener.Addr().String()
	}
	says := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
	}
	for id, addr := range map[string]string{
		"me": serve(says("itself")), "a": serve(says("a's")), "b": serve(says("b's")), "c": serve(http.NotFound), "empty": serve(says("")),
		"d": serve(cutOff), "down": "127.0.0.1:1",
	} {
		m.apply(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: id, Name: id, Addr: addr}}})
	}
	var got []string
	for _, b := range follower(t, m).Gather(t.Context(), "traces?limit=1") {
		got = append(got, string(b))
	}
	slices.Sort(got)
	if want := []string{"", "a's", "b's"}; !slices.Equal(got, want) {
		t.Errorf("gathered %q, want %q", got, want)
	}
	if len(asked) != 5 {
		t.Errorf("%d were asked", len(asked))
	}
	for range len(asked) {
		if a := <-asked; a != "GET /peer/v1/traces?limit=1" {
			t.Errorf("one was asked %q", a)
		}
	}
}

// How far another controller is, and its time, decide who votes and whose clock is
// believed: an answer that doesn't say is an error, not zero.
func TestAStatusThatSaysNothingIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		index  uint64 // 0: an error
		clock  bool
	}{
		"as it is":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "18446744073709551615") }, 1<<64 - 1, true},
		"no number":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "many") }, 0, true},
		"nothing":     {func(http.ResponseWriter, *http.Request) {}, 0, true},
		"negative":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "-1") }, 0, true},
		"too large":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "18446744073709551616") }, 0, true},
		"without end": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat("1", 1<<16)) }, 0, true},
		"no time":     {func(w http.ResponseWriter, _ *http.Request) { w.Header()["Date"] = nil; _, _ = io.WriteString(w, "7") }, 7, false},
		"another time": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", "yesterday")
			_, _ = io.WriteString(w, "7")
		}, 7, false},
		"it is refused": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "7", http.StatusForbidden) }, 0, false},
		"half":          {cutOff, 0, true},
	} {
		m := newMember()
		lead(t, m, c.answer)
		f := follower(t, m)
		if i, err := f.Status(t.Context(), "l", m.addrs["l"]); i != c.index && err == nil || (err != nil) != (c.index == 0) {
			t.Errorf("%s: index %d, %v", name, i, err)
		}
		if at, err := f.Clock(t.Context(), "l", m.addrs["l"]); (err == nil) != c.clock || err == nil && time.Since(at).Abs() > time.Minute {
			t.Errorf("%s: time %v, %v", name, at, err)
		}
	}
}
