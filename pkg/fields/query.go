package fields

import (
	"net/url"
	"slices"
	"strings"
)

// Param is a parameter of a route's query, like Row.
type Param struct {
	Name  string
	Class Class
	Why   string
}

// Queries lists the query parameters of docker's API, by served route. Unknown
// parameters are ignored, as docker ignores them.
var Queries = map[string][]Param{
	"GET /containers/json":          {{"all", Fleet, ""}, {"limit", Fleet, ""}, {"filters", Fleet, ""}, {"size", Warned, "sizes of containers are"}},
	"POST /containers/create":       {{"name", Fleet, ""}, {"platform", Fleet, ""}},
	"GET /containers/{id}/json":     {{"size", Warned, "sizes of containers are"}},
	"POST /containers/{id}/start":   {{"detachKeys", Inert, "the attach has them"}, {"checkpoint", Refused, "checkpoints are"}, {"checkpoint-dir", Refused, "checkpoints are"}},
	"POST /containers/{id}/stop":    {{"signal", Fleet, ""}, {"t", Fleet, ""}},
	"POST /containers/{id}/restart": {{"signal", Fleet, ""}, {"t", Fleet, ""}},
	"POST /containers/{id}/kill":    {{"signal", Fleet, ""}},
	"POST /containers/{id}/rename":  {{"name", Fleet, ""}},
	"DELETE /containers/{id}":       {{"v", Fleet, ""}, {"force", Fleet, ""}, {"link", Refused, "links are"}},
	"POST /containers/{id}/wait":    {{"condition", Fleet, ""}},
	"POST /containers/{id}/attach":  {{"detachKeys", Fleet, ""}, {"logs", Fleet, ""}, {"stream", Fleet, ""}, {"stdin", Fleet, ""}, {"stdout", Fleet, ""}, {"stderr", Fleet, ""}},
	"GET /containers/{id}/logs": {{"follow", Fleet, ""}, {"stdout", Fleet, ""}, {"stderr", Fleet, ""}, {"since", Fleet, ""}, {"until", Fleet, ""}, {"timestamps", Fleet, ""}, {"tail", Fleet, ""},
		{"details", Inert, "they come from options of log drivers, which are refused"}},
	"GET /containers/{id}/top":     {{"ps_args", Fleet, ""}},
	"GET /containers/{id}/stats":   {{"stream", Fleet, ""}, {"one-shot", Fleet, ""}},
	"GET /containers/{id}/archive": {{"path", Fleet, ""}},
	"PUT /containers/{id}/archive": {{"path", Fleet, ""}, {"noOverwriteDirNonDir", Fleet, ""}, {"copyUIDGID", Fleet, ""}},
	"POST /containers/{id}/resize": {{"h", Fleet, ""}, {"w", Fleet, ""}},
	"POST /exec/{id}/resize":       {{"h", Fleet, ""}, {"w", Fleet, ""}},
	"GET /events":                  {{"since", Fleet, ""}, {"until", Fleet, ""}, {"filters", Fleet, ""}},

	"GET /images/json": {{"filters", Fleet, ""}, {"all", Inert, "there are no images between others"}, {"digests", Inert, "they are always there"},
		{"shared-size", Refused, "sizes that images share are"}, {"manifests", Inert, "clients take a list without for one of an image that has none here"}, {"identity", Inert, "as manifests"}},
	"POST /images/create": {{"fromImage", Fleet, ""}, {"tag", Fleet, ""}, {"platform", Fleet, ""}, {"fromSrc", Refused, "importing images is"},
		{"repo", Inert, "of an import"}, {"message", Inert, "of an import"}, {"changes", Inert, "of an import"}},
	"GET /images/{name}/json": {{"manifests", Inert, "as in a list"}, {"platform", Refused, "choosing a platform of an image is"}},
	"POST /images/{name}/tag": {{"repo", Fleet, ""}, {"tag", Fleet, ""}},
	"DELETE /images/{name}":   {{"force", Fleet, ""}, {"noprune", Inert, "there are no untagged parents"}, {"platforms", Refused, "removing a platform of an image is"}},

	"GET /volumes":           {{"filters", Fleet, ""}},
	"POST /volumes/prune":    {{"filters", Fleet, ""}},
	"DELETE /volumes/{name}": {{"force", Fleet, ""}},
	"PUT /volumes/{name}":    {{"version", Inert, "of volumes of Swarm, which are refused"}},
	"GET /system/df":         {{"type", Fleet, ""}, {"verbose", Fleet, ""}},
	"GET /networks":          {{"filters", Fleet, ""}},
	"GET /networks/{id}":     {{"verbose", Inert, "services, which it adds, are Swarm's"}, {"scope", Fleet, ""}},
	"POST /networks/prune":   {{"filters", Fleet, ""}},

	"GET /plugins": {{"filters", Inert, "there are none"}},
	"POST /build/prune": {{"reserved-space", Inert, "nothing is built here"}, {"max-used-space", Inert, "nothing is built here"}, {"min-free-space", Inert, "nothing is built here"},
		{"all", Inert, "nothing is built here"}, {"filters", Inert, "nothing is built here"}},
}

// CheckQuery refuses a request to a route ("GET /images/{name}/json") that sets a
// parameter which nothing honours, and returns the warnings about those that are
// ignored.
func CheckQuery(route string, q url.Values) (warnings []string, err error) {
	for _, p := range Queries[strings.Replace(route, "...}", "}", 1)] {
		if slices.Contains([]string{"", "0", "no", "false", "none", "null", "[]"}, strings.ToLower(strings.TrimSpace(q.Get(p.Name)))) {
			continue
		}
		switch p.Class {
		case Refused:
			return nil, unavailable(p.Name, p.Why)
		case Warned:
			warnings = append(warnings, p.Why+" not available on this fleet yet")
		}
	}
	return warnings, nil
}
