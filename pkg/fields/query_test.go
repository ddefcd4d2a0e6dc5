package fields

import (
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// Every parameter that docker's own description of its API has, for a route that is
// served, says what becomes of it.
func TestEveryParameterIsListed(t *testing.T) {
	b, err := os.ReadFile("testdata/queries.txt") // of swagger.yaml of API 1.56
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{}
	for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.Fields(l)
		known[f[0]+" "+f[1]] = f[2:]
	}
	for route, params := range Queries {
		names := map[string]bool{}
		for _, p := range params {
			if names[p.Name] || p.Class != Fleet && p.Why == "" || !slices.Contains([]Class{Fleet, Inert, Warned, Refused}, p.Class) {
				t.Errorf("%s: %+v", route, p)
			}
			names[p.Name] = true
		}
		for _, name := range known[route] {
			if !names[name] {
				t.Errorf("%s: nothing says what becomes of %s", route, name)
			}
		}
		if known[route] == nil {
			t.Errorf("docker has no query for %s", route)
		}
	}
}

func TestParametersThatNothingHonoursAreRefusedByName(t *testing.T) {
	for route, params := range Queries {
		for _, p := range params {
			var e *Error
			warnings, err := CheckQuery(route, url.Values{p.Name: {"1"}})
			if (len(warnings) == 1) != (p.Class == Warned) {
				t.Errorf("%s?%s=1, which is %s: warnings %q", route, p.Name, p.Class, warnings)
			}
			if errors.As(err, &e); (p.Class == Refused) != (e != nil) || e != nil && (e.Field != p.Name || !e.Unavailable || !strings.HasPrefix(e.Message, p.Name+": "+p.Why)) {
				t.Errorf("%s?%s=1, which is %s: %v", route, p.Name, p.Class, err)
			}
			for _, unset := range []string{"", "0", "false"} {
				if warnings, err := CheckQuery(route, url.Values{p.Name: {unset}}); err != nil || len(warnings) > 0 {
					t.Errorf("%s?%s=%s: %q, %v", route, p.Name, unset, warnings, err)
				}
			}
		}
	}
	if _, err := CheckQuery("GET /containers/json", url.Values{"later": {"1"}}); err != nil {
		t.Errorf("a parameter of a later docker: %v", err)
	}
	if _, err := CheckQuery("DELETE /images/{name...}", url.Values{"platforms": {`[{"os":"linux"}]`}}); err == nil {
		t.Error("a name of many segments is another route")
	}
}
