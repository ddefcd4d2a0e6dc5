package fleetapi

import (
	"encoding/base64"
	"slices"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Number of objects of a page.
const (
	defaultPage = 100
	maxPage     = 1000
)

// page returns the objects after a token, sorted by key, and the token for the rest.
// A token holds the last key of its page, so that a list can be continued even if
// objects were added or removed meanwhile.
func page[T any](all []T, key func(T) string, size uint32, token string) (out []T, next string, err error) {
	after, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, "", refuse(dv1.Error_INVALID, "page token %q is invalid", token)
	}
	if size == 0 {
		size = defaultPage
	}
	size = min(size, maxPage)
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	from := 0
	if token != "" {
		from, _ = slices.BinarySearchFunc(all, string(after)+"\x00", func(a T, k string) int { return strings.Compare(key(a), k) })
	}
	out = all[from:]
	if len(out) > int(size) {
		out = out[:size]
		next = base64.RawURLEncoding.EncodeToString([]byte(key(out[size-1])))
	}
	return out, next, nil
}
