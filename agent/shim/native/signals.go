//go:build cgo

package native

/*
#include <signal.h>
#include <stddef.h>

// Signals that an ancestor ignored (nohup, trap '' HUP) or blocked stay so over fork and
// execve, and Go's runtime respects that for some: so would processes of containers. This
// runs before Go's runtime looks at them, in the shim and in all that it executes itself as.
__attribute__((constructor)) static void reset_signals(void) {
	struct sigaction now;
	sigset_t none;
	for (int sig = 1; sig < NSIG; sig++) {
		if (sigaction(sig, NULL, &now) == 0 && now.sa_handler == SIG_IGN) {
			signal(sig, SIG_DFL);
		}
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}
*/
import "C"
