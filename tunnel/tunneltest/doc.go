// Package tunneltest holds what tests and benchmarks of the tunnels need and no program does: a userspace UDP relay
// that stands for the network between a host and a gateway ([Relay]).
//
// Out of scope: anything that needs privilege, and the tunnels themselves.
package tunneltest
