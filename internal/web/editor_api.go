package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// handlerDraft answers a handler's fields as the file writes them.
func (s *Server) handlerDraft(w http.ResponseWriter, r *http.Request) {
	if !s.mayAct(r) {
		fail(w, http.StatusForbidden, "a viewer may only look: use a token or a user with role: operator")
		return
	}
	id, ok := s.handlerID(w, r)
	if !ok {
		return
	}
	d, err := s.opts.Editor.Draft(id)
	if err != nil {
		s.notEdited(w, r, err)
		return
	}
	answer(w, http.StatusOK, d)
}

// editRequest is an Edit as a body has it.
type editRequest struct {
	// Fields are those that change; a field of "" is taken away.
	Fields map[string]string `json:"fields,omitempty"`
	// Base is what a draft said: when the file has changed since, nothing is written.
	Base string `json:"base,omitempty"`
	// DryRun shows what would change.
	DryRun bool `json:"dry_run,omitempty"`
}

// addHandler writes a new handler.
func (s *Server) addHandler(w http.ResponseWriter, r *http.Request) {
	var asked editRequest
	if err := readBody(w, r, &asked); err != nil {
		fail(w, http.StatusBadRequest, "%v", err)
		return
	}
	s.edit(w, r, Edit{Fields: asked.Fields, Base: asked.Base}, asked.DryRun, http.StatusCreated, "added")
}

// removeHandler takes a handler out of the file.
func (s *Server) removeHandler(w http.ResponseWriter, r *http.Request) {
	id, ok := s.handlerID(w, r)
	if !ok {
		return
	}
	s.edit(w, r, Edit{ID: id, Remove: true, Base: r.URL.Query().Get("base")}, r.URL.Query().Get("dry_run") == "true", http.StatusOK, "deleted")
}

// edit makes an edit, or shows what it would do.
func (s *Server) edit(w http.ResponseWriter, r *http.Request, e Edit, dry bool, code int, what string) {
	ctx, cancel := context.WithTimeout(r.Context(), writePatience)
	defer cancel()
	if dry {
		p, err := s.opts.Editor.Propose(ctx, e)
		if err != nil {
			s.notEdited(w, r, err)
			return
		}
		answer(w, http.StatusOK, p)
		return
	}
	p, err := s.opts.Editor.Save(ctx, e)
	if err != nil {
		s.notEdited(w, r, err)
		return
	}
	if p.Diff != "" {
		s.act(r, "handler written", "handler", p.ID, "what", what, "diff", p.Diff)
	}
	if code == http.StatusCreated {
		w.Header().Set("Location", fmt.Sprintf("/api/v1/handlers/%d", p.ID))
	}
	answer(w, code, p)
}

func (s *Server) notEdited(w http.ResponseWriter, r *http.Request, err error) {
	var wrong *ProblemsError
	var conflict *ConflictError
	switch {
	case errors.As(err, &wrong):
		answer(w, http.StatusUnprocessableEntity, editProblems{wrong.Error(), wrong.Problems})
	case errors.As(err, &conflict):
		answer(w, http.StatusConflict, editConflict{conflict.Error(), conflict.Since, conflict.Proposal})
	default:
		s.notDone(w, r, err)
	}
}

// editProblems says what is wrong with an edit.
type editProblems struct {
	Error    string         `json:"error"`
	Problems []FieldProblem `json:"problems,omitempty"`
}

// editConflict says that the file has changed.
type editConflict struct {
	Error string `json:"error"`
	Since string `json:"since,omitempty"` // how it has
	Proposal
}
