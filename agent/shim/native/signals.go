//go:build cgo

package native

/*
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Signals that an ancestor ignored (nohup, trap '' HUP) or blocked stay so over fork and
// execve, and Go's runtime respects that for some: so would processes of containers. This
// runs before Go's runtime looks at them, in the shim and in all that it executes itself as.
// The system call is made here since libc keeps two signals to itself, and others do not:
// make(1) leaves one of them ignored.
__attribute__((constructor)) static void reset_signals(void) {
	struct { // kernel_sigaction, with room for what is behind the handler
		void (*handler)(int);
		unsigned long rest[7];
	} now;
	sigset_t none;
	for (int sig = 1; sig <= 64; sig++) {
		if (syscall(SYS_rt_sigaction, sig, NULL, &now, 8) == 0 && now.handler == SIG_IGN) {
			memset(&now, 0, sizeof now);
			syscall(SYS_rt_sigaction, sig, &now, NULL, 8);
		}
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}
*/
import "C"
