// Package route is what a listener answers, as data: which requests there are, who
// may make them, where they are answered, what bodies they have and what handles
// them. Who a caller is, package pki says.
package route

import (
	"net/http"
	"strings"

	"github.com/drover/drover/pkg/pki"
)

// Who is a set of callers. The zero value is nobody.
type Who uint8

// Callers, by the role that they act with.
const (
	Anyone     Who = 1 << iota // also who shows no identity
	Token                      // a host that shows a token
	Node                       // an agent
	Controller                 // a controller
	User                       // a user; an admin is one too
	Admin                      // an admin
)

// Members are the fleet's own processes.
const Members = Node | Controller

var names = []string{"anyone", "token", "node", "controller", "user", "admin"}

// String names the callers, most powerful last.
func (w Who) String() string {
	var out []string
	for i, n := range names {
		if w&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	if len(out) == 0 {
		return "nobody"
	}
	return strings.Join(out, ", ")
}

// Of is what a principal's roles make it. A node or a controller is one by its
// certificate and by its role, and never a user besides.
func Of(p pki.Principal) Who {
	switch p.Kind {
	case pki.KindNode:
		if p.Has(pki.KindNode) {
			return Anyone | Node
		}
	case pki.KindController:
		if p.Has(pki.KindController) {
			return Anyone | Controller
		}
	case pki.KindToken:
		return Anyone | Token
	case pki.KindUser, pki.KindLocal:
		switch {
		case p.Has(pki.RoleAdmin):
			return Anyone | User | Admin
		case p.Has(pki.KindUser):
			return Anyone | User
		}
	}
	return Anyone
}

// Has says whether the set has a caller.
func (w Who) Has(p pki.Principal) bool { return w&Of(p) != 0 }

// Place is where a request is answered.
type Place string

// Places.
const (
	Leader Place = "leader" // by the controller that leads, wherever it is asked
	Here   Place = "here"   // by who is asked, from what it has
	Stream Place = "stream" // by who is asked, with bytes straight to or from a node
)

// Route is what is known of a request before it is handled. A pattern's segment {x}
// stands for one segment of a path, {x...} for one or more; "/" is every path.
// Routes are comparable.
type Route struct {
	Method  string // "" is any; HEAD asks what GET does
	Pattern string
	At      Place
	Who     Who
	Body    Body
	Read    bool // it changes nothing, whatever its method
}

// Changes reports whether a request of the route by a method may change something.
func (r Route) Changes(method string) bool {
	return !r.Read && method != http.MethodGet && method != http.MethodHead
}

// String is the route as people write it.
func (r Route) String() string { return strings.TrimSpace(r.Method + " " + r.Pattern) }

// Handled is a route and what handles it: H is the form that a listener's handlers
// have, such as a method expression, whose receiver is known when the listener is made.
type Handled[H any] struct {
	Route
	Handle H
}

// Table is a listener's surface; of the routes that match a request the first counts.
type Table[H any] []Handled[H]

// Routes are the table's, without their handlers.
func (t Table[H]) Routes() []Route {
	out := make([]Route, len(t))
	for i := range t {
		out[i] = t[i].Route
	}
	return out
}

// Match finds what handles a request, and what its route's segments stand for.
func (t Table[H]) Match(method, path string) (h Handled[H], values map[string]string, ok bool) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i := range t {
		r := &t[i]
		head := r.Method == http.MethodGet && method == http.MethodHead
		if r.Method != "" && r.Method != method && !head {
			continue
		}
		if v, ok := match(r.Pattern, segments); ok {
			return *r, v, true
		}
	}
	return h, nil, false
}

// SetValues has a request's PathValue return what its route's segments stand for.
func SetValues(r *http.Request, values map[string]string) {
	for k, v := range values {
		r.SetPathValue(k, v)
	}
}

// API finds requests' routes together with their handlers, so that who checks or
// forwards a request has read its path for all that come after.
type API interface {
	// Match returns a request's route and its handler, nil if the API has none.
	Match(r *http.Request) (Route, http.Handler)
}

func match(pattern string, path []string) (map[string]string, bool) {
	if pattern == "/" {
		return nil, true
	}
	var values map[string]string
	set := func(name, v string) {
		if values == nil {
			values = map[string]string{}
		}
		values[name] = v
	}
	want := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
	for i, w := range want {
		if len(path) == 0 {
			return nil, false
		}
		name, variable := strings.CutPrefix(w, "{")
		name = strings.TrimSuffix(name, "}")
		n := 1
		if long, ok := strings.CutSuffix(name, "..."); ok && variable {
			name, n = long, len(path)-len(want[i+1:])
			if n < 1 {
				return nil, false
			}
		}
		v := strings.Join(path[:n], "/")
		switch {
		case !variable && v != w, v == "":
			return nil, false
		case variable:
			set(name, v)
		}
		path = path[n:]
	}
	return values, len(path) == 0
}
