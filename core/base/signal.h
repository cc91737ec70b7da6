// SPDX-License-Identifier: Apache-2.0
// Requests to stop: SIGTERM, SIGUSR1 (batch systems, before the time is up) and SIGINT (Ctrl-C) set a flag, which long
// work reads at a safe point to save its state and end with TS_ESTOPPED. A second SIGINT ends the program at once.
#ifndef TS_BASE_SIGNAL_H
#define TS_BASE_SIGNAL_H

// Installs the handlers; again is harmless.
int ts_signal_catch(void);
// "SIGTERM", "SIGUSR1" or "SIGINT" of the last request; NULL when there was none. Signals may reach ranks at different
// times: agree (ts_agree_any) before acting.
const char *ts_signal_pending(void);
// Gives the signals back to the system's default action and forgets a request.
void ts_signal_release(void);

// A file that must not outlive the program, such as a socket: the first request to stop removes it, and so do the ways
// out on which nothing else is cleaned up. NULL: there is none any more. TS_EINPUT for a path of TS_PATH_BYTES.
int ts_signal_guard(const char *path);
// Removes it now. May be called in a signal handler, and on any thread.
void ts_signal_remove_guarded(void);

#endif
