package tunnel

import (
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// TestTCPIsTuned reads the options back: the stack takes some without a word that it then does not use.
func TestTCPIsTuned(t *testing.T) {
	s, err := newStackTUN(addr(ownRange, 300), defaultMTU)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var (
		sack     tcpip.TCPSACKEnabled
		control  tcpip.CongestionControlOption
		rack     tcpip.TCPRecovery
		send     tcpip.TCPSendBufferSizeRangeOption
		receive  tcpip.TCPReceiveBufferSizeRangeOption
		moderate tcpip.TCPModerateReceiveBufferOption
		maxRTO   tcpip.TCPMaxRTOOption
	)
	for _, o := range []tcpip.GettableTransportProtocolOption{&sack, &control, &rack, &send, &receive, &moderate, &maxRTO} {
		if err := s.stack.TransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			t.Fatalf("%T: %s", o, err)
		}
	}
	if !bool(sack) || control != "cubic" || rack&tcpip.TCPRACKLossDetection == 0 || !bool(moderate) || time.Duration(maxRTO) != time.Second {
		t.Errorf("SACK %t, %s, recovery %v, moderation %t, max RTO %s", sack, control, rack, moderate, time.Duration(maxRTO))
	}
	if send.Default != 8<<20 || send.Max != 8<<20 || receive.Default != 8<<20 || receive.Max != 8<<20 {
		t.Errorf("buffers %+v and %+v", send, receive)
	}
}
