// Package fields lists every field of the requests of docker's API, and what
// becomes of each: a request that sets one that nothing honours is refused by the
// field's name, never carried out without it. What a field means to a container
// is its node's to say, and who may set it is package access's.
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

// Class is what becomes of a field that is set.
type Class string

// Classes.
const (
	Node    Class = "honoured by the node"  // in what the node makes of the container
	Fleet   Class = "honoured by the fleet" // by controllers, or by agents outside the container
	Inert   Class = "inert"                 // docker on Linux ignores it too
	Warned  Class = "warned"                // carried out without it, with a warning
	Refused Class = "refused"
)

// Row is one field of a request of type T. A row of a field that has fields itself
// stands for all of them; such a field can't be honoured as a whole.
type Row[T any] struct {
	Path  string // as it is in JSON: Labels, HostConfig.Mounts[].Target, NetworkingConfig.EndpointsConfig.*.Links
	Class Class
	// Why is the reason for which the field is inert; or what a warning or a refusal
	// says of it: "restart policies are not available on this fleet yet".
	Why string
	// But are values that ask for nothing, beside the zero value and a pointer to it.
	But []string
	// Asks reports whether a request asks for anything with the field. nil: if it is set.
	Asks func(*T) bool
}

// Error refuses a request.
type Error struct {
	Field   string // its path
	Message string
	// Unavailable is set where the request would be good once the fleet can do what it asks for.
	Unavailable bool
}

func (e *Error) Error() string { return e.Message }

// invalid refuses a value, in docker's words where it has some.
func invalid(field, format string, args ...any) error {
	return &Error{Field: field, Message: fmt.Sprintf(format, args...)}
}

// unavailable refuses what the fleet can't do yet. why is a clause with its verb.
func unavailable(field, why string) error {
	return &Error{Field: field, Message: field + ": " + why + " not available on this fleet yet", Unavailable: true}
}

// Table is the rows of one type of request. It is safe for concurrent use.
type Table[T any] struct {
	Rows []Row[T]
	root *node[T]
}

// node is a field's place in the type.
type node[T any] struct {
	path   string
	row    *Row[T]    // nil: none is listed
	fields []*node[T] // in order, of a struct that no row stands for
}

// table panics where rows name what T has not, or a field twice. Fields that no row
// names are left to Unlisted.
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

// build takes the rows that it uses out of rows.
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

// element is the struct with fields of its own that a type holds, nil for none, and
// how a path steps into it.
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

// isValue reports whether a type is one text in JSON, whatever it is in Go.
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

// Unlisted are the paths of fields that no row names.
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

// Check refuses a request that sets a field which is refused, or which nobody
// listed, with an *Error, and returns the warnings of those that are left out.
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
// pointers to zero, and empty structs, for what nobody asked for.
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
		return v.NumField() == 0 // one that is there says all that it can
	}
	return !v.IsZero()
}
