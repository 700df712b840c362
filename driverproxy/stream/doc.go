// Package stream is the clients' websocket of driver commands, GET /v1/sessions/{id}/stream: both ends of it.
//
// A client sends one JSON text message a command and gets one a command back, in the same order. It may send commands
// without waiting for answers; they run in order, and reach the device without waiting for one another. The server speaks first:
//
//	← {"stream": "5f0c…", "received": 0, "window": 64, "bytes": 16777216}
//	→ {"id": 1, "method": "POST", "path": "/url", "body": {"url": "https://example.com/"}}
//	→ {"id": 2, "method": "POST", "path": "/element", "body": {"using": "css selector", "value": "#none"}}
//	← {"id": 1, "status": 200, "value": null}
//	← {"id": 2, "status": 404, "value": {"error": "no such element", "message": "…", "stacktrace": ""}}
//	→ {"id": 3, "method": "GET", "path": "/title", "ack": 2}
//	← {"id": 3, "status": 200, "value": "Example Domain"}
//	→ {"ack": 3}
//
// path is what follows /session/{session id} in W3C WebDriver; DELETE of the empty path quits the session. ids count from 1
// without gaps. ack says that the client has every answer up to that id, so that they need not be kept any more; it goes with a
// command or alone. At most window commands may be unacknowledged, and the bodies of those without an answer may have so many
// bytes together (one alone may be larger). Of a client that sends more, further ones wait, and in the end it is not read. One that
// has had all answers, and acknowledges nothing for 10 s although others wait for that, is told so and the socket is closed.
//
// # Resuming
//
// stream is the token of the stream, which outlives the socket, and also the orchestrator. After a socket broke, the client dials
//
//	GET /v1/sessions/{id}/stream?resume=TOKEN&answered=M
//
// where M is the highest id up to which it has every answer; that acknowledges them. The server's first message says in received
// up to which id it has the commands: the client sends those above again, with their ids, and the server sends the answers above M
// again. It may answer one before it is sent again. A command that comes twice is run once. A token that nobody knows is a stream of which nothing is left to answer: received
// is M. A second socket with the same token takes the place of the first. A command whose fate cannot be known is answered with the W3C
// "unknown error" with data.outcome "unknown", and not run again.
//
// A session has at most 8 streams. One that is not connected gives its place to a new one if all its answers are acknowledged, or after 10
// minutes: so a client must resume within that time.
//
// # Refusals and closes
//
//	HTTP 400  resume is no token, answered no number, or the request no websocket handshake
//	HTTP 404  there is no such session
//	HTTP 409  the session is still queued; or answered does not fit the stream: answers above it have been acknowledged before, or
//	          fewer were given
//	HTTP 410  the session has ended
//	HTTP 429  the session has 8 streams
//	HTTP 503  the session is not run by this orchestrator, or not yet: try again
//	1000      the session has ended; every command that was received has been answered
//	1001      the session moves to another orchestrator: resume
//	1008      the client has sent something else than the above, or acknowledges nothing: mend it, then resume
//	4001      another socket resumed the stream
//
// # Bounds
//
// A message is at most 128 MiB long. Of each stream the server keeps 64 answers (the window) and at most 64 MiB of them: beyond that no further
// command is begun, so that only answers of commands that were under way come on top. It reads no further command while 128 are not acknowledged
// or 16 MiB of commands are not answered. A session whose host has to keep more than 256 MiB of answers ends as stream_overflow.
//
// Pings go both ways at least every 20 s; who hears nothing for 60 s takes the socket for broken.
//
// [Client] does its part of all that by itself.
//
// Out of scope: what runs the commands ([Runner]), how many streams there are and who may open them (package orchestrator).
package stream
