package tunnel

import (
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	// tcpBuffer is what one connection may have under way. At 130 ms a stock buffer (1 MiB) stops a connection at 8 MB/s
	// whatever the line carries. It is a limit and not an allocation: an idle connection holds nothing of it.
	tcpBuffer = 8 << 20
	// tcpMaxRTO is the longest pause before something is sent again. The stock 120 s would let a connection that lived
	// through a partition of 30 s wait as long again; who is behind a link that is down for good is the watch's matter.
	tcpMaxRTO = time.Second
)

// tuneTCP sets the stack up for the ocean. At 130 ms round trip and 0.1 % loss a stream of the stock stack carries
// 0.43 MB/s, and 0.88 MB/s with what is set here, about as much as the cubic of Linux (1.0).
func tuneTCP(s *stack.Stack) []tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true) // off by default in this stack, and RACK needs it
	cubic := tcpip.CongestionControlOption("cubic")
	rack := tcpip.TCPRACKLossDetection
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBuffer, Max: tcpBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcpBuffer, Max: tcpBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	maxRTO := tcpip.TCPMaxRTOOption(tcpMaxRTO)
	var errs []tcpip.Error
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &cubic, &rack, &send, &receive, &moderate, &maxRTO} {
		errs = append(errs, s.SetTransportProtocolOption(tcp.ProtocolNumber, o))
	}
	return errs
}
