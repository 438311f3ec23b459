// Names are found as programs write them: fx.solve is fixntk.solve.
const parseQuery = Search._parseQuery;
Search._parseQuery = (query) => parseQuery(query.replace(/\bfx\./g, "fixntk."));
