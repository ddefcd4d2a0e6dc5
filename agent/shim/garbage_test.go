package shim

import (
	"math"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// tuning returns the collector's settings, which stay as they are.
func tuning() (percent int, limit int64) {
	percent = debug.SetGCPercent(100)
	debug.SetGCPercent(percent)
	return percent, debug.SetMemoryLimit(-1)
}

func TestGarbageIsCollectedBehindAStart(t *testing.T) {
	percent, limit := tuning()
	defer func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}()
	synctest.Test(t, func(t *testing.T) {
		is := func(when string, percent int, limit int64) {
			t.Helper()
			if p, l := tuning(); p != percent || l != limit {
				t.Errorf("%s it collects at %d %%, with a limit of %d", when, p, l)
			}
		}
		c := newCollecting(refusing{})
		time.Sleep(2 * settled)
		is("without a container", -1, startMemory)
		_, _ = c.Create(t.Context(), nil)
		time.Sleep(settled / 2)
		_, _ = c.Exec(t.Context(), nil)
		is("at a start", -1, startMemory)
		time.Sleep(settled / 2)
		synctest.Wait()
		is("after it, though another one came", idlePercent, math.MaxInt64)
		_, _ = c.Exec(t.Context(), nil)
		is("at an exec", -1, startMemory)
		time.Sleep(settled)
		synctest.Wait()
		is("after that", idlePercent, math.MaxInt64)
	})
}
