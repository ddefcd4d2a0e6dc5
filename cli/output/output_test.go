package output

import (
	"bytes"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestWords(t *testing.T) {
	now := time.Unix(1000, 0)
	for got, want := range map[string]string{
		Word(dv1.Node_READY):                           "ready",
		Word(dv1.ControllerInfo_CATCHING_UP):           "catching up",
		Word(dv1.ControllerInfo_ROLE_UNSPECIFIED):      "",
		Ago(now, now.Add(-90*time.Second).UnixNano()):  "About a minute ago",
		Ago(now, now.Add(-4*time.Hour).UnixNano()):     "4 hours ago",
		Pairs(map[string]string{"b": "2", "a": "1=1"}): "a=1=1,b=2",
		"nothing" + Pairs(nil):                         "nothing",
		ShortID("0123456789abcdef"):                    "0123456789ab",
		ShortID("short"):                               "short",
		Row("a", 1, 2.5, ""):                           "a\t1\t2.5\t",
	} {
		if got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

func TestTables(t *testing.T) {
	var out bytes.Buffer
	if err := Table(&out, "NAME\tROLE", []string{Row("a-long-name", "leader"), Row("b", "")}); err != nil {
		t.Fatal(err)
	}
	if want := "NAME          ROLE\na-long-name   leader\nb             \n"; out.String() != want {
		t.Errorf("the table is %q, not %q", out.String(), want)
	}
	out.Reset()
	if err := JSON(&out, map[string]int{"a": 1}, "  "); err != nil || out.String() != "{\n  \"a\": 1\n}\n" {
		t.Errorf("JSON is %q: %v", out.String(), err)
	}
}
