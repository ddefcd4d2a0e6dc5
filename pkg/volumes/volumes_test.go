package volumes

import "testing"

func TestWhatOptionsMean(t *testing.T) {
	for _, c := range []struct {
		kind, device, o       string
		home, mounted, rootly bool
	}{
		{"", "", "", true, false, false},
		{"none", "/srv", "bind", true, true, true},
		{"ext4", "/dev/sdb", "", true, true, true},
		{"nfs", ":/srv", "addr=10.0.0.9,rw", false, true, false},
		{"nfs4", ":/srv", "", false, true, false},
		{"cifs", "//nas/x", "username=u", false, true, false},
		{"tmpfs", "tmpfs", "size=1m", false, true, false},
		{"nfs", "/etc", "BIND", true, true, true},
		{"tmpfs", "/etc", "ro, rbind", true, true, true},
		{"tmpfs", "/", "remount", true, true, true},
		{"tmpfs", "/", "size=1m,bind=", true, true, true},
		{"tmpfs", "/", "Rbind =x", true, true, true},
		{"nfs", ":/binds", "addr=10.0.0.9,unbind,bindx", false, true, false},
	} {
		o := map[string]string{"type": c.kind, "device": c.device, "o": c.o}
		if HasHome(o) != c.home || Mounted(o) != c.mounted || Rootly(o) != c.rootly {
			t.Errorf("%+v: home %v, mounted %v, rootly %v", c, HasHome(o), Mounted(o), Rootly(o))
		}
	}
}

func TestOptionsOfMount8(t *testing.T) {
	for o, want := range map[string]string{"": "", "ro,addr=1.2.3.4,vers=4": "", "ro,loop": "loop", "loop=/dev/loop0": "loop=/dev/loop0", "X-mount.mkdir": "X-mount.mkdir",
		"rw,x-systemd.automount": "x-systemd.automount", "users": "users", "uid=7": "", "ro, Helper=x": " Helper=x",
		"verity.hashdevice=/dev/sdb": "verity.hashdevice=/dev/sdb"} {
		if got := Unmountable(o); got != want {
			t.Errorf("%q: %q, want %q", o, got, want)
		}
	}
}
