package faketask_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/drover/drover/agent/task/enginetest"
	"github.com/drover/drover/agent/task/faketask"
)

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Subject {
		e := faketask.New()
		e.AddImage("sha256:busybox")
		t.Cleanup(func() { e.Close(); goleak.VerifyNone(t) })
		return enginetest.Subject{Engine: e, Image: "busybox", Digest: "sha256:busybox"}
	})
}
