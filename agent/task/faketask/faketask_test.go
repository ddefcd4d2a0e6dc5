package faketask_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/drover/drover/agent/task/enginetest"
	"github.com/drover/drover/agent/task/faketask"
)

func TestConformance(t *testing.T) {
	subject := func(t *testing.T) enginetest.Subject {
		e := faketask.New()
		e.Images.Add("sha256:busybox")
		t.Cleanup(func() { e.Close(); goleak.VerifyNone(t) })
		return enginetest.Subject{Runtime: e, Streams: e, Images: e.Images, Image: "busybox", Digest: "sha256:busybox"}
	}
	enginetest.Runtime(t, subject)
	enginetest.Streams(t, subject)
	enginetest.Images(t, subject)
}
