package command

import (
	"fmt"
	"strings"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Results that are young are kept, but not above a number of bytes.
func TestResultsAreBoundedByBytes(t *testing.T) {
	txn := state.NewTxn(state.NewStore().Snapshot())
	big := strings.Repeat("x", 1<<20)
	put := func(i int) {
		if err := txn.Apply(Evict(txn.View(), 1)...); err != nil {
			t.Fatal(err)
		}
		txn.PutResult(&dv1.KeyResult{Key: fmt.Sprint("k", i), At: int64(i), Result: &dv1.CommandResult{Warnings: []string{big}}})
	}
	for i := range 50 {
		put(i)
	}
	if txn.Result("k0") == nil {
		t.Error("a young result is gone")
	}
	for i := 50; i < 500; i++ {
		put(i)
	}
	if n := txn.ResultBytes(); n > maxKept+2<<20 || n < maxKept/2 {
		t.Errorf("%d bytes are kept, of %d", n, maxKept)
	}
	if txn.Result("k499") == nil {
		t.Error("the newest is gone")
	}
	for i := range 500 {
		if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_DeleteResult{DeleteResult: fmt.Sprint("k", i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := txn.ResultBytes(); n != 0 {
		t.Errorf("nothing is kept, in %d bytes", n)
	}
}
