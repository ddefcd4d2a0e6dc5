package timing

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	ms := time.Millisecond
	for text, want := range map[string]Timing{
		"": LAN, "lan": LAN, "wan": WAN, "500/600/400": {500 * ms, 600 * ms, 400 * ms}, "1s/1s/500ms": {1000 * ms, 1000 * ms, 500 * ms},
		LAN.String(): LAN, WAN.String(): WAN,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for text, say := range map[string]string{
		"fast": "none of lan, wan", "1/2": "none of lan, wan", "1s/x/1s": `"x" is no duration`, "1s/1s/-1s": "the lease timeout -1s",
		"4/10/4": "the heartbeat timeout 4ms", "2h/2h/2h": "the heartbeat timeout 2h", "300/200/200": "shorter than the heartbeat timeout",
		"300/300/301": "longer than the heartbeat timeout", "300/300/100": "between two heartbeats",
	} {
		if got, err := Parse(text); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%q is %v, %v; want %q", text, got, err, say)
		}
	}
	if LAN.Profile() != "lan" || WAN.Profile() != "wan" || (Timing{}).Profile() != "" || FromProto(WAN.Proto()) != WAN || FromProto(nil) != LAN {
		t.Error("profiles are not what they are")
	}
}

func TestTheFileDecidesTheNextStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "timing")
	if got, err := Load(path, WAN); err != nil || got != WAN {
		t.Fatalf("without a file: %v, %v", got, err)
	}
	if err := Save(path, LAN); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(path, WAN); err != nil || got != LAN {
		t.Fatalf("with a file: %v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, WAN); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("a damaged file: %v", err)
	}
}
