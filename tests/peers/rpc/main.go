// Command rpc-peer speaks yamux (HashiCorp) and dRPC (Storj) over a WebSocket: the foreign side of
// tests/e2e/test_rpc_peer.py.
//
//	rpc-peer serve           serve the methods of serve.go on a free port of loopback; the first line printed is its URL
//	rpc-peer call URL CASE   run one case of call.go against a server with the same methods; exit status 0 if it held
//
// Both end when standard input does, so that a peer never outlives its test. Messages are raw bytes.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"storj.io/drpc"
)

func main() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 3 && args[0] == "call":
		return call(args[1], args[2])
	}
	return fmt.Errorf("usage: rpc-peer serve | rpc-peer call URL CASE")
}

// stream makes one byte stream of a WebSocket's binary messages.
func stream(socket *websocket.Conn) net.Conn {
	socket.SetReadLimit(-1)
	return websocket.NetConn(context.Background(), socket, websocket.MessageBinary)
}

func yamuxConfig() *yamux.Config {
	config := yamux.DefaultConfig()
	config.LogOutput = os.Stderr
	return config
}

// raw passes bytes as they are.
type raw struct{}

func (raw) Marshal(message drpc.Message) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(buf []byte, message drpc.Message) error {
	*message.(*[]byte) = append([]byte(nil), buf...)
	return nil
}

// pattern is n bytes that show where each of them belongs.
func pattern(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i * 31 >> 3)
	}
	return out
}
