package web

import (
	_ "embed" // for the document
	"net/http"
)

// openAPIDocument describes /api/v1, as OpenAPI 3.1. It is made of the types that are
// answered with: go test ./internal/web -run TestOpenAPI -update.
//
//go:embed openapi.json
var openAPIDocument []byte

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(openAPIDocument) // the client has gone; nobody is left to tell
}
