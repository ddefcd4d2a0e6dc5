// Package fields lists every field of docker's API requests, and how each is treated: a
// request that sets a field which nothing honours is refused by the field's name, never
// carried out without it. What a field means to a container is up to the node, and who
// may set it is up to package access.
package fields

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Class is how a field that is set is treated.
type Class string

// Classes.
const (
	Node    Class = "honoured by the node"  // in the container that the node makes
	Fleet   Class = "honoured by the fleet" // by controllers, or by agents outside the container
	Inert   Class = "inert"                 // ignored by docker on Linux too
	Warned  Class = "warned"                // ignored, with a warning
	Refused Class = "refused"
)

// Row is one field of a request of type T. A row for a field that has fields of its own
// covers all of them; such a field can't be honoured as a whole.
type Row[T any] struct {
	Path  string // as in JSON: Labels, HostConfig.Mounts[].Target, NetworkingConfig.EndpointsConfig.*.Links
	Class Class
	// Why is the reason why the field is inert, or the text of a warning or refusal:
	// "restart policies are not available on this fleet yet".
	Why string
	// But lists values that ask for nothing, besides the zero value and a pointer to it.
	But []string
	// Asks reports whether a request asks for anything with the field. nil: whether the
	// field is set.
	Asks func(*T) bool
}

// Error refuses a request.
type Error struct {
	Field   string // its path
	Message string
	// Unavailable is set if the request will be valid once the fleet supports what it asks
	// for.
	Unavailable bool
}

func (e *Error) Error() string { return e.Message }

// invalid refuses a value, in docker's words where docker has some.
func invalid(field, format string, args ...any) error {
	return &Error{Field: field, Message: fmt.Sprintf(format, args...)}
}

// unavailable refuses what the fleet doesn't support yet. why is a clause with its verb.
func unavailable(field, why string) error {
	return &Error{Field: field, Message: field + ": " + why + " not available on this fleet yet", Unavailable: true}
}

// Table holds the rows of one type of request. It is safe for concurrent use.
type Table[T any] struct {
	Rows []Row[T]
	root *node[T]
}

// node is a field of the type.
type node[T any] struct {
	path   string
	row    *Row[T]    // nil: not listed
	fields []*node[T] // in order, of a struct that no row covers
}

// table panics if rows name a field that T lacks, or name one twice. Fields without a
// row are reported by Unlisted.
func table[T any](rows ...[]Row[T]) *Table[T] {
	t := &Table[T]{Rows: slices.Concat(rows...)}
	byPath := map[string]*Row[T]{}
	for i := range t.Rows {
		p := t.Rows[i].Path
		if byPath[p] != nil {
			panic("fields: " + p + " is listed twice")
		}
		byPath[p] = &t.Rows[i]
	}
	t.root = build("", reflect.TypeFor[T](), byPath)
	if len(byPath) > 0 {
		panic(fmt.Sprintf("fields: %s has no %s", reflect.TypeFor[T](), slices.Sorted(maps.Keys(byPath))))
	}
	return t
}

// build removes the rows that it uses from rows.
func build[T any](path string, typ reflect.Type, rows map[string]*Row[T]) *node[T] {
	n := &node[T]{path: path, row: rows[path]}
	delete(rows, path)
	elem, suffix := element(typ)
	if elem == nil || n.row != nil && n.row.Class != Node && n.row.Class != Fleet {
		return n
	}
	if n.row != nil {
		panic("fields: " + path + " is honoured field by field")
	}
	for i := range elem.NumField() {
		f := elem.Field(i)
		at := path + suffix
		if name := jsonName(f); name != "" {
			at = strings.TrimPrefix(at+"."+name, ".")
		}
		n.fields = append(n.fields, build(at, f.Type, rows))
	}
	return n
}

// element returns the struct that a type holds, nil if it holds none, and the step to it
// in a path.
func element(typ reflect.Type) (elem reflect.Type, suffix string) {
	for {
		if isValue(typ) {
			return nil, ""
		}
		switch typ.Kind() {
		case reflect.Pointer:
		case reflect.Slice, reflect.Array:
			suffix += "[]"
		case reflect.Map:
			suffix += ".*"
		case reflect.Struct:
			if typ.NumField() == 0 {
				return nil, ""
			}
			return typ, suffix
		default:
			return nil, ""
		}
		typ = typ.Elem()
	}
}

// isValue reports whether a type is a single string in JSON, whatever it is in Go.
func isValue(typ reflect.Type) bool {
	if typ.Kind() == reflect.Pointer {
		return false
	}
	p := reflect.PointerTo(typ)
	return p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) || p.Implements(reflect.TypeFor[json.Unmarshaler]())
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch {
	case name != "":
		return name
	case f.Anonymous:
		return ""
	}
	return f.Name
}

// Unlisted returns the paths of fields that no row covers.
func (t *Table[T]) Unlisted() []string { return unlisted(t.root) }

func unlisted[T any](n *node[T]) (out []string) {
	if n.row == nil && n.fields == nil {
		return []string{n.path}
	}
	for _, f := range n.fields {
		out = append(out, unlisted(f)...)
	}
	return out
}

// Check refuses a request that sets a refused or unlisted field, with an *Error, and
// returns the warnings about fields that are ignored.
func (t *Table[T]) Check(req *T) (warnings []string, err error) {
	w := walk[T]{req: req}
	err = w.value(reflect.ValueOf(req), t.root)
	return w.warnings, err
}

type walk[T any] struct {
	req      *T
	warnings []string
}

func (w *walk[T]) value(v reflect.Value, n *node[T]) error {
	if n.fields == nil {
		return w.field(v, n)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return w.value(v.Elem(), n)
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if err := w.value(v.Index(i), n); err != nil {
				return err
			}
		}
		return nil
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if err := w.value(it.Value(), n); err != nil {
				return err
			}
		}
		return nil
	}
	for i, f := range n.fields {
		if err := w.value(v.Field(i), f); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk[T]) field(v reflect.Value, n *node[T]) error {
	r := n.row
	var asks bool
	if r != nil && r.Asks != nil {
		asks = r.Asks(w.req)
	} else {
		asks = isSet(v)
	}
	switch {
	case !asks:
		return nil
	case r == nil:
		return unavailable(n.path, "this field is")
	case r.Class != Refused && r.Class != Warned, slices.Contains(r.But, text(v)):
		return nil
	case r.Class == Refused:
		return unavailable(n.path, r.Why)
	}
	if said := r.Why + " not available on this fleet yet"; !slices.Contains(w.warnings, said) {
		w.warnings = append(w.warnings, said)
	}
	return nil
}

func text(v reflect.Value) string {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return fmt.Sprint(v.Interface())
}

// isSet reports whether a field asks for more than its zero value does. Clients send
// pointers to zero, and empty structs, for options that nobody set.
func isSet(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		return !v.IsNil() && isSet(v.Elem())
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	case reflect.Struct:
		if isValue(v.Type()) {
			return !v.IsZero()
		}
		for i := range v.NumField() {
			if isSet(v.Field(i)) {
				return true
			}
		}
		return v.NumField() == 0 // its presence is all that it can express
	}
	return !v.IsZero()
}
