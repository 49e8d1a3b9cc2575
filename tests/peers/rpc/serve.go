package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"storj.io/drpc"
	"storj.io/drpc/drpcerr"
	"storj.io/drpc/drpcmux"
	"storj.io/drpc/drpcserver"
)

const banners = "/coder.agent.v2.Agent/GetAnnouncementBanners"

// cancelled counts the calls of /peer/Hang and /peer/Flood that ended by cancellation.
var cancelled atomic.Int64

type methods struct{}

func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s/\n", listener.Addr())
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		socket, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		session, err := yamux.Server(stream(socket), yamuxConfig())
		if err != nil {
			return
		}
		defer session.Close()
		server := drpcserver.New(methods{})
		for {
			accepted, err := session.AcceptStream()
			if err != nil {
				return
			}
			go server.ServeOne(context.Background(), accepted)
		}
	}))
}

func (methods) HandleRPC(stream drpc.Stream, rpc string) error {
	switch rpc {
	case "/peer/Echo":
		return unary(stream, func(request []byte) ([]byte, error) { return request, nil })
	case banners:
		return unary(stream, func([]byte) ([]byte, error) { return hex.DecodeString("0a0f0801120248691a0723666630303030") })
	case "/peer/Pattern":
		return unary(stream, func(request []byte) ([]byte, error) {
			n, err := strconv.Atoi(string(request))
			return pattern(n), err
		})
	case "/peer/Fail":
		return unary(stream, func([]byte) ([]byte, error) { return nil, errors.New("outer: inner: cause") })
	case "/peer/Unimplemented":
		return unary(stream, func([]byte) ([]byte, error) {
			return nil, drpcerr.WithCode(errors.New("Unimplemented"), drpcerr.Unimplemented)
		})
	case "/peer/Cancelled":
		return unary(stream, func([]byte) ([]byte, error) { return strconv.AppendInt(nil, cancelled.Load(), 10), nil })
	case "/peer/Hang":
		return unary(stream, func([]byte) ([]byte, error) {
			<-stream.Context().Done()
			cancelled.Add(1)
			return nil, stream.Context().Err()
		})
	case "/peer/Flood":
		return flood(stream)
	case "/peer/Count":
		return count(stream)
	case "/peer/Upper":
		return upper(stream)
	}
	return drpcmux.New().HandleRPC(stream, rpc)
}

func unary(stream drpc.Stream, answer func([]byte) ([]byte, error)) error {
	var request []byte
	if err := stream.MsgRecv(&request, raw{}); err != nil {
		return err
	}
	reply, err := answer(request)
	if err != nil {
		return err
	}
	return stream.MsgSend(&reply, raw{})
}

func flood(stream drpc.Stream) error {
	var request []byte
	if err := stream.MsgRecv(&request, raw{}); err != nil {
		return err
	}
	piece := pattern(60000)
	for {
		if err := stream.MsgSend(&piece, raw{}); err != nil {
			cancelled.Add(1)
			return err
		}
	}
}

func count(stream drpc.Stream) error {
	var request []byte
	if err := stream.MsgRecv(&request, raw{}); err != nil {
		return err
	}
	n, err := strconv.Atoi(string(request))
	for i := 0; err == nil && i < n; i++ {
		message := strconv.AppendInt(nil, int64(i), 10)
		err = stream.MsgSend(&message, raw{})
	}
	return err
}

// upper answers each message in capitals; "close" makes it end the call with Close instead of waiting for CloseSend.
func upper(stream drpc.Stream) error {
	for {
		var message []byte
		if err := stream.MsgRecv(&message, raw{}); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if string(message) == "close" {
			return stream.Close()
		}
		message = bytes.ToUpper(message)
		if err := stream.MsgSend(&message, raw{}); err != nil {
			return err
		}
	}
}
