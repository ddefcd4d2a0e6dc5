// Command pass passes two failpoints, the first three times.
package main

import (
	"fmt"

	"github.com/drover/drover/pkg/failpoint"
)

func main() {
	for i := range 3 {
		failpoint.Here("engine.attempt.before")
		fmt.Println("passed", i+1)
	}
	if err := failpoint.Error("shims.exec.before"); err != nil {
		fmt.Println("error:", err)
	}
	fmt.Println("ended")
}
