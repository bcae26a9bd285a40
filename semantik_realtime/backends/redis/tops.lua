-- Read the ends of topics that are on one server.
--
-- KEYS  the meta hashes
-- Return a JSON array: for each topic [epoch, offset, chain, owner], false for a field that is
--         absent, or the text of the error if the server refuses to read the hash.
local tops = {}
for place, meta in ipairs(KEYS) do
  local found = redis.pcall('HMGET', meta, 'epoch', 'offset', 'chain', 'owner')
  tops[place] = found.err or found
end
return cjson.encode(tops)
