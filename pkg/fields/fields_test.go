package fields

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// A field that docker adds has its row before anybody can use it.
func TestEveryFieldIsListed(t *testing.T) {
	for name, unlisted := range map[string][]string{
		"create": Create.Unlisted(), "update": Update.Unlisted(), "exec create": ExecCreate.Unlisted(), "exec start": ExecStart.Unlisted(),
		"network create": NetworkCreate.Unlisted(), "connect": Connect.Unlisted(), "disconnect": Disconnect.Unlisted(),
	} {
		if len(unlisted) > 0 {
			t.Errorf("%s: no row says what becomes of %s", name, unlisted)
		}
	}
}

func TestAFieldThatNobodyListedIsRefused(t *testing.T) {
	type inner struct{ Listed, Later string }
	type request struct {
		Name  string
		Inner []*inner
		Later map[string]inner
	}
	some := table([]Row[request]{{Path: "Name", Class: Node}, {Path: "Inner[].Listed", Class: Node}})
	if got := some.Unlisted(); !slices.Equal(got, []string{"Inner[].Later", "Later.*.Listed", "Later.*.Later"}) {
		t.Errorf("not listed are %s", got)
	}
	for field, r := range map[string]request{
		"": {Name: "n", Inner: []*inner{{Listed: "x"}, nil}, Later: map[string]inner{"k": {}}}, "Inner[].Later": {Inner: []*inner{{}, {Later: "x"}}},
		"Later.*.Listed": {Later: map[string]inner{"k": {Listed: "x"}}},
	} {
		_, err := some.Check(&r)
		var e *Error
		if errors.As(err, &e); (field == "") != (err == nil) || e != nil && e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestRowsAreOfTheType(t *testing.T) {
	type request struct{ Inner struct{ A, B string } }
	for why, rows := range map[string][]Row[request]{
		"has no [Other]":    {{Path: "Inner", Class: Inert}, {Path: "Other", Class: Node}},
		"is listed twice":   {{Path: "Inner.A", Class: Node}, {Path: "Inner.A", Class: Node}},
		"field by field":    {{Path: "Inner", Class: Node}},
		"has no [Inner.A]":  {{Path: "Inner", Class: Refused}, {Path: "Inner.A", Class: Node}},
		"has no [Inner.B.]": {{Path: "Inner.B.", Class: Node}},
	} {
		func() {
			defer func() {
				if r := recover(); !strings.Contains(fmt.Sprint(r), why) {
					t.Errorf("it says %v, want %q", r, why)
				}
			}()
			table(rows)
		}()
	}
}

// asked sets what path names in a request to something that is not its zero value.
func asked[T any](t *testing.T, path string) *T {
	t.Helper()
	r := new(T)
	v := reflect.ValueOf(r).Elem()
	for _, step := range strings.Split(path, ".") {
		v = concrete(v)
		if strings.HasPrefix(step, "*") {
			v = inMap(v)
			continue
		}
		name, lists := strings.CutSuffix(step, "[]")
		if v = v.FieldByIndex(named(t, v, name)); lists {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			v = v.Index(0)
		}
	}
	if set(t, v); path == "EnableIPv4" { // which is there unless it is refused
		concrete(v).SetBool(false)
	}
	return r
}

// inMap is the one element of a map of pointers, or the one of its slice: both can
// be set after they are in the map.
func inMap(m reflect.Value) reflect.Value {
	m.Set(reflect.MakeMap(m.Type()))
	key := reflect.New(m.Type().Key()).Elem()
	if p, ok := key.Addr().Interface().(*network.Port); ok {
		*p = network.MustParsePort("80/tcp")
	} else {
		key.SetString("bridge")
	}
	if elem := m.Type().Elem(); elem.Kind() == reflect.Pointer {
		e := reflect.New(elem.Elem())
		m.SetMapIndex(key, e)
		return e.Elem()
	}
	e := reflect.MakeSlice(m.Type().Elem(), 1, 1)
	m.SetMapIndex(key, e)
	return e.Index(0)
}

// concrete follows pointers, and makes what they miss.
func concrete(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	return v
}

func named(t *testing.T, v reflect.Value, name string) []int {
	for _, f := range reflect.VisibleFields(v.Type()) {
		if !f.Anonymous && jsonName(f) == name {
			if v.Kind() == reflect.Struct && len(f.Index) > 1 { // through an embedded pointer
				concrete(v.Field(f.Index[0]))
			}
			return f.Index
		}
	}
	t.Fatalf("%s has no field %s", v.Type(), name)
	return nil
}

func set(t *testing.T, v reflect.Value) {
	v = concrete(v)
	switch x := v.Addr().Interface().(type) {
	case *netip.Addr:
		*x = netip.MustParseAddr("192.0.2.1")
		return
	case *netip.Prefix:
		*x = netip.MustParsePrefix("192.0.2.0/24")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Array:
		set(t, v.Index(0))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		set(t, v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		if p, ok := k.Addr().Interface().(*network.Port); ok {
			*p = network.MustParsePort("80/tcp")
		} else {
			set(t, k)
		}
		set(t, e)
		v.SetMapIndex(k, e)
	case reflect.Struct:
		if v.NumField() > 0 {
			set(t, v.Field(0))
		}
	default:
		t.Fatalf("how is a %s set?", v.Type())
	}
}

// each holds a table to its rows: what is refused is refused by its name, all else passes.
func each[T any](t *testing.T, of *Table[T], check func(*T) ([]string, error)) {
	for _, row := range of.Rows {
		r := asked[T](t, row.Path)
		warnings, err := of.Check(r)
		var e *Error
		switch errors.As(err, &e); {
		case row.Class != Refused && err != nil:
			t.Errorf("%s, which is %s: %v", row.Path, row.Class, err)
		case (row.Class == Warned) != (len(warnings) == 1):
			t.Errorf("%s, which is %s: warnings %q", row.Path, row.Class, warnings)
		case row.Class == Refused && (e == nil || e.Field != row.Path || !e.Unavailable || !strings.HasPrefix(e.Message, row.Path+": "+row.Why+" not available")):
			t.Errorf("%s is refused: %+v", row.Path, err)
		}
		if _, err := check(r); row.Class == Refused && err == nil {
			t.Errorf("%s passes the check of values", row.Path)
		}
		if row.Class != Node && row.Class != Fleet && row.Why == "" || !slices.Contains([]Class{Node, Fleet, Inert, Warned, Refused}, row.Class) {
			t.Errorf("%s is %q because of %q", row.Path, row.Class, row.Why)
		}
	}
}

func TestWhatIsRefusedIsRefusedByItsName(t *testing.T) {
	each(t, Create, CheckCreate)
	each(t, Update, Update.Check)
	each(t, ExecCreate, ExecCreate.Check)
	each(t, ExecStart, ExecStart.Check)
	each(t, NetworkCreate, NetworkCreate.Check)
	each(t, Connect, Connect.Check)
	each(t, Disconnect, Disconnect.Check)
}

// sent reads a request as a client sent it.
func sent[T any](t *testing.T, file string) *T {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	r := new(T)
	if err := json.Unmarshal(b, r); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return r
}

// Bodies that docker's command sends, as they went over its socket, and those of
// compose and testcontainers: defaults that they spell out ask for nothing.
func TestWhatClientsSendUnaskedPasses(t *testing.T) {
	for file, want := range map[string][]string{
		"docker-create-run.json": nil, "compose-create.json": nil, "testcontainers-create.json": nil,
		"docker-create-options.json": {"Published ports are discarded when using host network mode"},
	} {
		if warnings, err := CheckCreate(sent[container.CreateRequest](t, file)); err != nil || !slices.Equal(warnings, want) {
			t.Errorf("%s: %q, %v", file, warnings, err)
		}
	}
	for _, file := range []string{"docker-exec-create.json", "docker-exec-detached.json"} {
		if _, err := ExecCreate.Check(sent[container.ExecCreateRequest](t, file)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for file, check := range map[string]func() ([]string, error){
		"docker-exec-start.json": func() ([]string, error) {
			return ExecStart.Check(sent[container.ExecStartRequest](t, "docker-exec-start.json"))
		},
		"docker-network-create.json": func() ([]string, error) {
			return NetworkCreate.Check(sent[network.CreateRequest](t, "docker-network-create.json"))
		},
		"docker-network-connect.json": func() ([]string, error) {
			return Connect.Check(sent[network.ConnectRequest](t, "docker-network-connect.json"))
		},
		"docker-network-disconnect.json": func() ([]string, error) {
			return Disconnect.Check(sent[network.DisconnectRequest](t, "docker-network-disconnect.json"))
		},
	} {
		if _, err := check(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	if _, err := Update.Check(sent[container.UpdateConfig](t, "docker-update-memory.json")); err == nil || !strings.HasPrefix(err.Error(), "Memory: ") {
		t.Errorf("an update is refused with %v", err)
	}
}

func BenchmarkCheckCreate(b *testing.B) {
	body, err := os.ReadFile("testdata/docker-create-run.json")
	if err != nil {
		b.Fatal(err)
	}
	var r container.CreateRequest
	if err := json.Unmarshal(body, &r); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := CheckCreate(&r); err != nil {
			b.Fatal(err)
		}
	}
}
