// A foreign end for our TCP: gVisor's netstack, set up like the network stack of the Go peers.
//
// It exchanges whole IPv6 packets over the sequenced-packet socket that it inherits, whose descriptor is its argument,
// and ends when that is closed. Its address is fd7a:115c:a1e0::2. It serves:
//
//	port 7    what arrives is sent back, half-closing when the other side does
//	port 9    what arrives is counted; after its end the SHA-256 is sent
//	port 19   after a line with a number: as many bytes of the pattern, then the end
//	port 21   reads nothing and closes after 200 ms, which resets the connection if bytes wait
//	port 23   reads nothing for as many milliseconds as the first line says, then like port 9
//	port 30   after a line with address, port, number: dials there, sends the pattern, half-closes, reads to the end,
//	          and answers with the SHA-256 of what came back
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const mtu = 1280

func main() {
	log.SetFlags(0)
	fd, err := strconv.Atoi(os.Args[len(os.Args)-1])
	if err != nil {
		log.Fatal("usage: tcp-peer DESCRIPTOR")
	}
	conn, err := net.FileConn(os.NewFile(uintptr(fd), "packets"))
	if err != nil {
		log.Fatalf("descriptor %d is not a socket: %v", fd, err)
	}
	link := channel.New(4096, mtu, "")
	net := newStack(link)
	go send(link, conn)
	serve(net, 7, echo)
	serve(net, 9, digest)
	serve(net, 19, source)
	serve(net, 21, reset)
	serve(net, 23, late)
	serve(net, 30, func(c *gonet.TCPConn) { dial(net, c) })
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil || n == 0 {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(append([]byte(nil), buf[:n]...))})
		link.InjectInbound(ipv6.ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

func check(err tcpip.Error) {
	if err != nil {
		log.Fatal(err)
	}
}

func newStack(link *channel.Endpoint) *stack.Stack {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack := tcpip.TCPSACKEnabled(true)
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	recovery := tcpip.TCPRecovery(0)
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery))
	congestion := tcpip.CongestionControlOption("cubic")
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &congestion))
	retries := tcpip.TCPMaxRetriesOption(5)
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &retries))
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 6 << 20}
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &rcv))
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20}
	check(s.SetTransportProtocolOption(tcp.ProtocolNumber, &snd))
	check(s.CreateNIC(1, link))
	addr := tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFromSlice(local.AsSlice()).WithPrefix(),
	}
	check(s.AddProtocolAddress(1, addr, stack.AddressProperties{}))
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: 1}})
	return s
}

var local = netip.MustParseAddr("fd7a:115c:a1e0::2")

func send(link *channel.Endpoint, conn net.Conn) {
	for {
		pkt := link.ReadContext(context.Background())
		if pkt == nil {
			return
		}
		view := pkt.ToView()
		if _, err := conn.Write(view.AsSlice()); err != nil {
			os.Exit(0)
		}
		pkt.DecRef()
	}
}

func serve(s *stack.Stack, port uint16, handle func(*gonet.TCPConn)) {
	l, err := gonet.ListenTCP(s, tcpip.FullAddress{Port: port}, ipv6.ProtocolNumber)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*gonet.TCPConn))
			}()
		}
	}()
}

func echo(c *gonet.TCPConn) {
	io.Copy(c, c)
	c.CloseWrite()
	io.Copy(io.Discard, c)
}

func digest(c *gonet.TCPConn) {
	sum := sha256.New()
	if _, err := io.Copy(sum, c); err == nil {
		fmt.Fprintf(c, "%s\n", hex.EncodeToString(sum.Sum(nil)))
	}
}

func source(c *gonet.TCPConn) {
	var count int
	fmt.Fscanln(c, &count)
	pattern(c, count)
	c.CloseWrite()
	io.Copy(io.Discard, c)
}

func reset(*gonet.TCPConn) { time.Sleep(200 * time.Millisecond) }

func late(c *gonet.TCPConn) {
	r := bufio.NewReaderSize(c, 16)
	var wait int
	fmt.Fscanln(r, &wait)
	time.Sleep(time.Duration(wait) * time.Millisecond)
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err == nil {
		fmt.Fprintf(c, "%s\n", hex.EncodeToString(sum.Sum(nil)))
	}
}

func dial(s *stack.Stack, control *gonet.TCPConn) {
	var host string
	var port uint16
	var count int
	fmt.Fscanln(control, &host, &port, &count)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	to := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(netip.MustParseAddr(host).AsSlice()), Port: port}
	c, err := gonet.DialContextTCP(ctx, s, to, ipv6.ProtocolNumber)
	if err != nil {
		fmt.Fprintf(control, "%v\n", err)
		return
	}
	defer c.Close()
	go func() {
		pattern(c, count)
		c.CloseWrite()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, c)
	fmt.Fprintf(control, "%d %s %v\n", n, hex.EncodeToString(sum.Sum(nil)), err)
}

// pattern writes count bytes: each block of 65536 is its number, repeated.
func pattern(w io.Writer, count int) {
	block := make([]byte, 65536)
	for number := 0; count > 0; number++ {
		for i := 0; i < len(block); i += 4 {
			block[i], block[i+1], block[i+2], block[i+3] = byte(number>>24), byte(number>>16), byte(number>>8), byte(number)
		}
		n := min(count, len(block))
		if _, err := w.Write(block[:n]); err != nil {
			return
		}
		count -= n
	}
}
