package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"tailscale.com/derp"
	"tailscale.com/derp/derphttp"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// derpServer relays on a free port of 127.0.0.1, by Upgrade and by WebSocket, and prints `port N`.
func derpServer() error {
	server := derp.NewServer(key.NewNode(), log.Printf)
	upgrade := derphttp.Handler(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("port %d\n", listener.Addr().(*net.TCPAddr).Port)
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/derp/latency-check" {
			return // nodes measure their way to this relay with it
		}
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			upgrade.ServeHTTP(w, r)
			return
		}
		socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{
			Subprotocols:    []string{"derp"},
			CompressionMode: websocket.CompressionDisabled,
		})
		if err != nil {
			log.Print(err)
			return
		}
		defer socket.Close(websocket.StatusInternalError, "closing")
		conn := websocket.NetConn(r.Context(), socket, websocket.MessageBinary)
		brw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
		server.Accept(r.Context(), conn, brw, r.RemoteAddr)
	}))
}

// derpClient stays connected to the relay of a port, prints `key HEX` when it is there, sends every datagram back to
// where it came from, and prints `gone HEX REASON` and `websocket REASON`. With a key to probe it asks that one once a
// second instead, as the health check of `coder netcheck` does, and prints `answered`.
func derpClient(arguments []string) error {
	flags := flag.NewFlagSet("derp-client", flag.ExitOnError)
	port := flags.Int("port", 0, "of the relay on 127.0.0.1")
	forced := flags.Bool("websocket", false, "do not try Upgrade")
	probed := flags.String("probe", "", "key of another derp-client in hexadecimal")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	region := &tailcfg.DERPRegion{RegionID: 1, Nodes: []*tailcfg.DERPNode{{
		Name: "1a", RegionID: 1, HostName: "127.0.0.1", DERPPort: *port, ForceHTTP: true,
	}}}
	client := derphttp.NewRegionClient(key.NewNode(), log.Printf, nil, func() *tailcfg.DERPRegion {
		return region
	})
	client.ForceWebsockets = *forced
	client.SetForcedWebsocketCallback(func(_ int, reason string) { fmt.Printf("websocket %q\n", reason) })
	client.SetCanAckPings(true)
	client.NotePreferred(true)
	if err := client.Connect(context.Background()); err != nil {
		log.Print(err)
		if err := client.Connect(context.Background()); err != nil {
			return err
		}
	}
	if *probed != "" {
		var peer key.NodePublic
		if err := peer.UnmarshalText([]byte("nodekey:" + *probed)); err != nil {
			return err
		}
		go func() {
			for ; ; time.Sleep(time.Second) {
				if err := client.Send(peer, []byte("are you there?")); err != nil {
					log.Print(err)
				}
			}
		}()
	}
	for {
		message, err := client.Recv()
		if err != nil {
			return err
		}
		switch message := message.(type) {
		case derp.ServerInfoMessage:
			fmt.Printf("key %s\n", strings.TrimPrefix(client.SelfPublicKey().String(), "nodekey:"))
			go func() {
				if err := client.Ping(context.Background()); err != nil {
					log.Print(err)
					return
				}
				fmt.Println("pong")
			}()
		case derp.ReceivedPacket:
			if *probed != "" {
				fmt.Println("answered")
				continue
			}
			if err := client.Send(message.Source, message.Data); err != nil {
				return err
			}
		case derp.PeerGoneMessage:
			fmt.Printf("gone %s %d\n", strings.TrimPrefix(message.Peer.String(), "nodekey:"), message.Reason)
		case derp.PingMessage:
			if err := client.SendPong(message); err != nil {
				return err
			}
		}
	}
}
